"""A slow copy of all that learns, an exponential moving average over the whole stream, which answers in its place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rankwise.adapters import Change
from rankwise.config import Share
from rankwise.strategies.base import Setting, Strategy
from rankwise.strategies.host import Copy, Host
from rankwise.streams import Task


def kept(k: int, decay: float, warm: bool = True) -> float:
    """Return the factor on the slow copy after step `k` (from 0): min(1 - 1/(k+1), decay), so that it starts equal."""
    return min(1 - 1 / (k + 1), decay) if warm else decay


@torch.no_grad()
def interpolate(slow: Mapping[str, Tensor], fast: Mapping[str, Tensor], keep: float) -> None:
    """Set slow <- keep * slow + (1 - keep) * fast, in place; at 0 and 1 exactly one of them."""
    for name, tensor in slow.items():
        tensor.lerp_(fast[name].to(tensor.dtype), 1 - keep)


@dataclass(frozen=True)
class EmaSettings:
    """`[[strategy]] kind = "ema"`: answer with a moving average."""

    decay: Share = 0.99
    """lambda, factor on the slow copy a step. It looks back 1 / (1 - lambda) steps, which should be the steps of a task
    or more; 0 follows at once, 1 never."""
    warmup: bool = True
    """Start low: min(1 - 1/(k+1), lambda) after step k of the stream, so that the first step is taken whole."""


class Ema(Strategy):
    """After each step: slow <- lambda * slow + (1 - lambda) * fast. The slow copy is scored, frozen and saved.

    Steps are counted over the whole stream, and nothing is reset at the edges of tasks, except: when blocks are frozen,
    folded or come anew, the fast copy takes the slow values (what is frozen is what has answered) and both go on from
    there; and so do the head's rows whenever a task ends, since those of its classes may be frozen next.
    """

    name = "ema"
    Settings = EmaSettings
    reads = frozenset({"live"})
    writes = {"slow copy": "set", "the values a task ends with": "set"}
    needs_sequence = False

    def __init__(self, settings: EmaSettings, seed: int) -> None:
        """Start without a copy."""
        super().__init__(settings, seed)
        self.slow: dict[str, Tensor] = {}
        self.steps = 0

    def misfit(self, setting: Setting) -> str | None:
        """Refuse a structure that changes step by step: the fast copy would be put back at each change."""
        if setting.reshaper:
            return f"{setting.reshaper!r}, which changes the blocks while they learn; remove one of them"
        return None

    def begin_task(self, host: Host, task: Task) -> None:
        """Copy what is new: the head's rows, and everything at the start of the stream."""
        now = host.snapshot().tensors
        own = _of_the_model(host, now)
        self.slow = {name: self.slow.get(name, t) if name in own else t for name, t in now.items()}

    def reshaped(self, host: Host) -> None:
        """Begin anew, from the values that are there now."""
        self.slow = dict(host.snapshot().tensors)

    def follow(self, host: Host, step: int) -> None:
        """Move the slow copy."""
        fast = host.snapshot().tensors
        self.slow = {name: tensor.to(fast[name].device) for name, tensor in self.slow.items()}
        interpolate(self.slow, fast, kept(self.steps, self.settings.decay, self.settings.warmup))
        self.steps += 1

    @torch.no_grad()
    def end_task(self, host: Host, task: Task) -> Sequence[Change]:
        """Let the head go on from its slow rows."""
        own = _of_the_model(host, self.slow)
        for name, parameter in host.live().items():
            if name in self.slow and name not in own:
                parameter.copy_(self.slow[name])
        return ()

    def deployed(self) -> Copy | None:
        """Return the slow copy."""
        return Copy(self.slow, None) if self.slow else None

    def state(self) -> dict[str, Tensor]:
        """Return the slow copy and the count of steps."""
        return {"steps": torch.tensor(self.steps), **{f"slow/{name}": tensor for name, tensor in self.slow.items()}}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take them back."""
        self.steps = int(state["steps"])
        held = {key.removeprefix("slow/"): tensor for key, tensor in state.items() if key != "steps"}
        self.slow = {name: tensor.clone() for name, tensor in held.items()}


def _of_the_model(host: Host, names: Mapping[str, Tensor]) -> set[str]:
    """Return those of `names` that are weights of the model, not rows of the objective's head."""
    own = {name for name, _ in host.model.named_parameters()}
    return {name for name in names if name in own or name.removeprefix("base.") in own}
