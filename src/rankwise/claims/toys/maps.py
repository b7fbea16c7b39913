"""A stream of linear maps: one frozen 32 -> 32 map, four tasks, each another low-rank change of the map.

x = 2 u_t + 0.3 N(0, I) with u_t a random unit vector; target (W + M_t) x with M_t of rank 2, its factors N(0, 1),
divided by sqrt(32). Errors are mean squares divided by those of the untouched W.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rankwise.seeds import generator

WIDTH, TASKS, BATCH, TESTED = 32, 4, 64, 512


@dataclass(frozen=True)
class Maps:
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

    def loss(self, model: nn.Module, task: int, step: int) -> Tensor:
        """Return the mean square error on the training batch of `step`."""
        x, target = self.draw(task, BATCH, "train", step)
        return (model(x) - target).square().mean()

    @torch.no_grad()
    def error(self, model: nn.Module, task: int) -> float:
        """Return the mean square error on fresh inputs of `task`, over that of the untouched W."""
        x, target = self.draw(task, TESTED, "test")
        untouched = (x @ self.weight.T - target).square().mean()
        return float((model.eval()(x) - target).square().mean() / untouched)

    @torch.no_grad()
    def update(self, model: nn.Module, task: int) -> Tensor:
        """Return what the adapter adds on fresh inputs of `task`, in evaluation mode: [512, 32]."""
        x, _ = self.draw(task, TESTED, "test")
        return model.eval()(x) - x @ self.weight.T


def maps(seed: int) -> Maps:
    """Draw the stream of `seed`."""
    rng = generator(seed, "toy")
    weight = torch.randn(WIDTH, WIDTH, generator=rng) / WIDTH**0.5
    directions = [torch.randn(WIDTH, generator=rng) for _ in range(TASKS)]
    pairs = [(torch.randn(WIDTH, 2, generator=rng), torch.randn(2, WIDTH, generator=rng)) for _ in range(TASKS)]
    units = tuple(u / u.norm() for u in directions)
    return Maps(seed, weight, units, tuple(p @ q / WIDTH**0.5 for p, q in pairs))


def mean_of_old(errors: Sequence[float]) -> float:
    """Return the mean error over the tasks before the last, from those of all tasks after the last."""
    return sum(errors[:-1]) / (len(errors) - 1)
