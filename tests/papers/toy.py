"""The toy stream of the MoRA claims: one frozen 32 -> 32 map, four tasks, each another low-rank change of the map.

x = 2 u_t + 0.3 N(0, I) with u_t a random unit vector; target (W + M_t) x with M_t of rank 2, its factors N(0, 1),
divided by sqrt(32). Errors are mean squares divided by those of the untouched W.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

from rankwise.adapters import Change, Gate, Identity, Pair, attach, banks_of, grow, pick_sites, using
from rankwise.papers.mora import SelfActivated
from rankwise.seeds import generator

WIDTH, TASKS, RANK, STEPS, BATCH, LR, TESTED = 32, 4, 8, 150, 64, 1e-2, 512
MORA = SelfActivated(top_k=8, temperature=0.05, threshold=0.2)
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Toy:
    """A seed's stream: the map W, each task's direction u_t [32] and change M_t [32, 32]."""

    seed: int
    weight: Tensor
    directions: tuple[Tensor, ...]
    changes: tuple[Tensor, ...]

    def draw(self, task: int, count: int, *keys: str | int) -> tuple[Tensor, Tensor]:
        """Return (x, target), each [count, 32], as a function of the seed, the task and `keys`."""
        noise = torch.randn(count, WIDTH, generator=generator(self.seed, "x", task, *keys))
        x = 2 * self.directions[task] + 0.3 * noise
        return x, x @ (self.weight + self.changes[task]).T

    def model(self) -> nn.Sequential:
        """Return the untouched W as a model."""
        linear = nn.Linear(WIDTH, WIDTH, bias=False)
        with torch.no_grad():
            linear.weight.copy_(self.weight)
        return nn.Sequential(linear)


@dataclass(frozen=True)
class Learnt:
    """What is left of a run over the toy stream."""

    toy: Toy
    model: nn.Sequential
    errors: list[list[float]]
    """errors[t][j]: relative error on task j after task t."""
    moved: list[float]
    """For each task but the first: relative change of the update on all earlier inputs when its block was appended."""

    @property
    def forgotten(self) -> float:
        """Mean error on the tasks before the last, after the last."""
        return sum(self.errors[-1][:-1]) / (TASKS - 1)

    @property
    def just_learnt(self) -> list[float]:
        """Error on each task right after it was learnt."""
        return [self.errors[t][t] for t in range(TASKS)]


def toy(seed: int) -> Toy:
    """Draw the stream of `seed`."""
    rng = generator(seed, "toy")
    weight = torch.randn(WIDTH, WIDTH, generator=rng) / WIDTH**0.5
    directions = [torch.randn(WIDTH, generator=rng) for _ in range(TASKS)]
    pairs = [(torch.randn(WIDTH, 2, generator=rng), torch.randn(2, WIDTH, generator=rng)) for _ in range(TASKS)]
    units = tuple(u / u.norm() for u in directions)
    return Toy(seed, weight, units, tuple(p @ q / WIDTH**0.5 for p, q in pairs))


def start(stream: Toy, gate: Gate) -> nn.Sequential:
    """Return the adapted model, still without blocks."""
    model = stream.model()
    method = "mora" if isinstance(gate, SelfActivated) else "lora-append"
    attach(model, pick_sites(model), Pair(gate), {"method": method, "seed": stream.seed})
    return model


def next_block(model: nn.Module, task: int, seed: int) -> None:
    """Freeze what there is and append the block of `task`."""
    grow(model, [Change("freeze"), Change("append", str(task), RANK)], seed)


@cache
def learn(seed: int, gate: Gate | None = None, append: bool = True) -> Learnt:
    """Learn the stream of `seed`: by appending and freezing blocks, or with one block throughout."""
    stream = toy(seed)
    model = start(stream, gate or Identity())
    errors: list[list[float]] = []
    moved: list[float] = []
    for task in range(TASKS):
        before = [update(model, stream, old) for old in range(task)]
        if append or task == 0:
            next_block(model, task, seed)
        after = [update(model, stream, old) for old in range(task)]
        if task:
            moved.append(float((torch.cat(after) - torch.cat(before)).norm() / torch.cat(before).norm()))
        train(model, stream, task)
        errors.append([error(model, stream, j) for j in range(TASKS)])
    return Learnt(stream, model, errors, moved)


def train(model: nn.Module, stream: Toy, task: int, steps: int = STEPS) -> None:
    """Take `steps` steps of Adam on `task`, with fresh moments."""
    model.train()
    rule = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=LR)
    for step in range(steps):
        x, target = stream.draw(task, BATCH, "train", step)
        rule.zero_grad()
        (model(x) - target).square().mean().backward()
        rule.step()


@torch.no_grad()
def error(model: nn.Module, stream: Toy, task: int) -> float:
    """Return the mean square error on fresh inputs of `task`, over that of the untouched W."""
    x, target = stream.draw(task, TESTED, "test")
    with using(model, blocks=()):
        untouched = (model.eval()(x) - target).square().mean()
    return float((model(x) - target).square().mean() / untouched)


@torch.no_grad()
def update(model: nn.Module, stream: Toy, task: int) -> Tensor:
    """Return what the adapter adds on fresh inputs of `task`, in evaluation mode: [512, 32]."""
    x, _ = stream.draw(task, TESTED, "test")
    return model.eval()(x) - x @ stream.weight.T


@torch.no_grad()
def own_share(learnt: Learnt, gate: SelfActivated) -> list[float]:
    """For each task, the fraction of its inputs whose largest weight lies in its own block."""
    (_, bank), *_ = banks_of(learnt.model).values()
    blocks = bank.view()
    shares = []
    for task in range(TASKS):
        x, _ = learnt.toy.draw(task, TESTED, "test")
        weights = gate.mix(gate.score(x @ blocks["A"].T, x, blocks), blocks.sizes, prune=False)
        shares.append(float((weights.argmax(-1) // RANK == task).float().mean()))
    return shares
