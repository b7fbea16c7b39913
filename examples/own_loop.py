"""Strategies on a training loop of your own: two tasks, the first held by EWC, answers by a moving average."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

import rankwise


def each_loss(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """Return the loss of each example [n]."""
    return nn.functional.cross_entropy(model(batch["x"]), batch["y"], reduction="none")


def make_task(number: int) -> list[dict[str, Tensor]]:
    """Return batches of task 0 or 1: which of two features is larger, each task with eight features of its own."""
    rng = torch.Generator().manual_seed(number)
    x = torch.zeros(256, 16)
    x[:, 8 * number : 8 * number + 8] = torch.randn(256, 8, generator=rng)
    return [{"x": part, "y": (part[:, 8 * number] > part[:, 8 * number + 1 + number]).long()} for part in x.split(32)]


def accuracy(model: nn.Module, batches: list[dict[str, Tensor]]) -> float:
    """Return the share of examples of `batches` that `model` gets right."""
    with torch.no_grad():
        right = [(model(batch["x"]).argmax(1) == batch["y"]).float().mean() for batch in batches]
    return float(torch.stack(right).mean())


def main(strength: float = 1000.0) -> list[float]:
    """Learn two tasks, the first held with `strength`; return the accuracy on each at the end."""
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 2))
    model = rankwise.adapt(base, "lora", rank=8)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    tasks = [make_task(0), make_task(1)]
    with rankwise.learning(
        model, "ewc", "ema", optimizer=optimizer, losses=each_loss, ewc={"strength": strength}, ema={"decay": 0.9}
    ) as hooks:
        for number, task in enumerate(tasks):
            if number:
                hooks.begin_task()
            for _ in range(10):
                for batch in task:
                    optimizer.zero_grad()
                    each_loss(model, batch).mean().backward()
                    optimizer.step()
            hooks.end_task(task)
        with hooks.showing_deployed():
            scores = [accuracy(model, task) for task in tasks]
    print("accuracy on each task:", [round(score, 3) for score in scores])
    return scores


if __name__ == "__main__":
    main()
