"""The straight line between what a run was after two of its tasks: is there a ridge of loss on it, or a better point?

Minima found one after another by continued training tend to be joined by a line of low loss (arXiv 2402.18865, section
3, for LoRA; arXiv 1912.05671). Values are interpolated tensor by tensor: factors, not their products.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rankwise.adapters import is_adapted, ledger
from rankwise.errors import StorageError, UsageError, nearest
from rankwise.learning.learner import Learner
from rankwise.learning.ledger import Ledger
from rankwise.learning.state import banks
from rankwise.streams import Task

Values = Mapping[str, Tensor]


def connectivity_path(theta_a: Values, theta_b: Values, alphas: Sequence[float]) -> Iterator[dict[str, Tensor]]:
    """Yield (1 - alpha) theta_a + alpha theta_b, by name, for each alpha; at 0 and 1 exactly one of them."""
    for alpha in alphas:
        yield {name: torch.lerp(tensor, theta_b[name], alpha) for name, tensor in theta_a.items()}


def barrier(losses: Sequence[float], alphas: Sequence[float]) -> float:
    """Return the largest height of the losses over the straight line between the first and the last of them."""
    first, last = losses[0], losses[-1]
    return max(loss - ((1 - alpha) * first + alpha * last) for loss, alpha in zip(losses, alphas, strict=True))


def distance(theta_a: Values, theta_b: Values) -> float:
    """Return the Euclidean distance over all elements of all tensors."""
    squares = [(tensor - theta_b[name]).square().sum() for name, tensor in theta_a.items()]
    return float(torch.stack(squares).sum().sqrt())


def linear_cka(x: Tensor, y: Tensor) -> float:
    """Return the similarity of two sets of features [N, d] and [N, e] of the same examples, from 0 to 1.

    ||Y^T X||^2 / (||X^T X|| ||Y^T Y||), Frobenius norms of centred features (arXiv 1905.00414): 1 for features equal up
    to rotation, scale and shift.
    """
    x, y = x - x.mean(0), y - y.mean(0)
    return float((y.T @ x).norm().square() / ((x.T @ x).norm() * (y.T @ y).norm()).clamp_min(1e-30))


def measure(learner: Learner, saved: Ledger, tasks: tuple[str, str], alphas: Sequence[float]) -> dict[str, Any]:
    """Score and take the losses on two tasks along the line between the values that answered after each of them.

    Only weights of the model move along it; everything else (the head's rows, class means) is as it was after the
    second task, so its end at alpha = 1 is that row of R.

    Args:
        learner: made from the run's config, fresh; it is changed.
        saved: the run.
        tasks: names of the two, the earlier first.
        alphas: where to stop, from 0 to 1.

    Returns:
        tasks, metric, alphas; scores and losses (a list for each task); barriers (of the losses, for each task);
        distance; cka (of the features on each task's test rows, between both ends); best (the alpha whose mean score
        over both is largest).

    Raises:
        UsageError: a task that the run has not learnt, or weights that do not live from one to the other.
        StorageError: a snapshot is gone or damaged.

    """
    first, second = (_named(learner, name) for name in tasks)
    theta_a, shape_a = _after(learner, saved, first)
    theta_b, shape_b = _after(learner, saved, second)
    if shape_a != shape_b or not theta_a:
        raise UsageError(
            f"method {learner.method.slug!r}: other blocks learn in {second.name!r} than in {first.name!r}, so no line "
            'joins their values; take a run with one block through the stream (adapter.growth = "keep")'
        )
    learner.strategies = tuple(part for part in learner.strategies if part.deployed() is None)  # the line answers now
    points = [_at(learner, values, (first, second)) for values in connectivity_path(theta_a, theta_b, alphas)]
    features = [_features(learner, values, (first, second)) for values in (theta_a, theta_b)]
    scores, losses = ({t: [point[what][t] for point in points] for t in tasks} for what in (0, 1))
    means = [sum(point[0].values()) / 2 for point in points]
    return {
        "tasks": list(tasks),
        "metric": learner.objective.metric,
        "alphas": list(alphas),
        "scores": scores,
        "losses": losses,
        "barriers": {name: barrier(values, alphas) for name, values in losses.items()},
        "distance": distance(theta_a, theta_b),
        "cka": {t: linear_cka(x, y) for t, x, y in zip(tasks, *features, strict=True)},
        "best": alphas[max(range(len(means)), key=means.__getitem__)],
    }


def _named(learner: Learner, name: str) -> Task:
    names = [task.name for task in learner.tasks]
    if name not in names:
        raise UsageError(f"--tasks: task {name!r} is not in this run; {nearest(name, names)}")
    return learner.tasks[names.index(name)]


def _after(learner: Learner, saved: Ledger, task: Task) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Put the learner where it stood after `task`; return the values that answered, and what structure they have."""
    ends: Mapping[int, Path] = saved.task_ends()
    if task.index + 1 not in ends:
        raise StorageError(
            f"{saved.path}: no snapshot of the end of {task.name!r}: it was not learnt (yet), or the snapshot is gone; "
            f"`rankwise log {saved.path}` lists those there are"
        )
    tensors, values = saved.read(ends[task.index + 1])
    learner.restore(tensors, values["learner"])
    copy = learner.deployed() or learner.snapshot()
    moved = {name: tensor.clone() for name, tensor in copy.tensors.items() if name.startswith("base.")}
    blocks = {path: [block.label for block in bank.blocks] for path, bank in banks(learner).items() if path != "head"}
    edits = sorted(ledger(learner.model)) if is_adapted(learner.model) else []
    return moved, {"blocks": blocks, "edits": edits, "shapes": {name: t.shape for name, t in moved.items()}}


def _at(learner: Learner, values: Values, tasks: Sequence[Task]) -> tuple[dict[str, float], dict[str, float]]:
    """Return the scores and the mean losses on the test rows of both tasks, at one point."""
    learner.put(values)
    scores = {task.name: learner.objective.score(learner, task, task.test) or 0.0 for task in tasks}
    return scores, {task.name: _loss(learner, task) for task in tasks}


def _loss(learner: Learner, task: Task) -> float:
    classes = learner.classes(task)
    return float(learner.each(task.test, lambda batch: learner.losses(batch, classes), learner.blocks_for(task)).mean())


def _features(learner: Learner, values: Values, tasks: Sequence[Task]) -> list[Tensor]:
    learner.put(values)
    return [
        learner.each(task.test, lambda batch: learner.forward(batch).features, learner.blocks_for(task)).cpu()
        for task in tasks
    ]
