"""Where a run computes: device, precision, and the processes it is spread over (torchrun or accelerate launch)."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import torch.distributed as dist
from accelerate import PartialState
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from rankwise.config import TrainSettings
from rankwise.errors import UsageError


@dataclass(frozen=True)
class Processes:
    """This process among its peers, and its device."""

    device: torch.device
    rank: int = 0
    world: int = 1
    precision: str = "float32"
    sharded: bool = False
    """Each process holds a share of the base, so all must run the same number of forwards."""

    @classmethod
    def start(cls, settings: TrainSettings) -> Processes:
        """Join the peers that a launcher started, if any, and take the device that `settings` asks for."""
        state = PartialState(cpu=settings.device == "cpu")
        assert state.device is not None
        device = state.device if settings.device == "auto" else torch.device(settings.device)
        if device.type == "cuda" and not torch.cuda.is_available():
            raise UsageError(f'train.device = "{settings.device}": torch sees no GPU here; use "auto" or "cpu"')
        if settings.threads is not None:
            torch.set_num_threads(settings.threads)
        sharded = settings.shard_base and state.num_processes > 1
        return cls(device, state.process_index, state.num_processes, settings.precision, sharded)

    @property
    def first(self) -> bool:
        """True in the one process that writes files and speaks to the user."""
        return self.rank == 0

    def autocast(self) -> AbstractContextManager[object]:
        """Return the context in which forwards run."""
        if self.precision == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    def add_up(self, tensors: list[Tensor]) -> None:
        """Replace each tensor, in place, by its sum over processes: one exchange for all of them."""
        if self.world == 1 or not tensors:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors]).to(self.device)
        dist.all_reduce(flat)
        for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def share(self, count: int) -> range:
        """Return this process's run of `count` rows; all of them if there are too few to go round."""
        if count < self.world:
            return range(count)
        return range(count * self.rank // self.world, count * (self.rank + 1) // self.world)

    def gather(self, rows: Tensor, count: int) -> Tensor:
        """Put the runs of all processes together: rows [share, ...] -> [count, ...]."""
        if self.world == 1 or count < self.world:
            return rows
        longest = -(-count // self.world) + 1
        padded = rows.new_zeros(longest, *rows.shape[1:])
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in range(self.world)]
        dist.all_gather(parts, padded)
        sizes = [count * (r + 1) // self.world - count * r // self.world for r in range(self.world)]
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    def shard(self, module: nn.Module) -> None:
        """Spread the parameters of `module` that do not learn over the processes (FSDP2), block by block, in place."""
        live = {parameter for parameter in module.parameters() if parameter.requires_grad}
        mesh = init_device_mesh(self.device.type, (self.world,))
        for block in outer_blocks(module):
            if not live.issuperset(block.parameters()):
                fully_shard(block, mesh=mesh, ignored_params=live)
        fully_shard(module, mesh=mesh, ignored_params=live)

    def wait(self) -> None:
        """Return when every process has come here."""
        if self.world > 1:
            dist.barrier()


def outer_blocks(module: nn.Module) -> list[nn.Module]:
    """Return the blocks a module is stacked from: the elements of its outermost lists (those within run as one)."""
    if isinstance(module, nn.ModuleList):
        return list(module)
    return [block for child in module.children() for block in outer_blocks(child)]
