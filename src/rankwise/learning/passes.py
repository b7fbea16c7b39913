"""Passes over the rows of a split in evaluation mode, shared out among the processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rankwise.adapters import Sink, using
from rankwise.streams import Batch, Split, encoded, in_order

if TYPE_CHECKING:
    from rankwise.learning.view import View

Do = Callable[[Batch], Tensor]


def each(learner: View, split: Split, do: Do, blocks: tuple[str, ...] | None, sink: Sink | None) -> Tensor:
    """Return do(batch) for all rows of `split`: [N, ...]."""
    mine = split.take(torch.tensor(learner.processes.share(len(split)), dtype=torch.long))
    learner.model.eval()
    batches = in_order(mine, learner.backbone.encode, learner.config.train.eval_batch_size)
    rows = [one(learner, batch, do, blocks, sink) for batch in batches]
    if learner.processes.sharded:
        go_along(learner, split, do, blocks, len(rows))
    return learner.processes.gather(torch.cat(rows), len(split))


def one(learner: View, batch: Batch, do: Do, blocks: tuple[str, ...] | None, sink: Sink | None) -> Tensor:
    """Return do(batch) under the context of evaluation."""
    batch = batch.to(learner.processes.device)
    context = {"blocks": blocks, "sink": sink, **learner.context(batch, None)}
    with using(learner.model, **context), learner.processes.autocast():
        return do(batch)


def go_along(learner: View, split: Split, do: Do, blocks: tuple[str, ...] | None, done: int) -> None:
    """Run the forwards that other processes run and this one does not need: they wait for its share of the base."""
    longest = -(-len(split) // learner.processes.world)
    for _ in range(done, -(-longest // learner.config.train.eval_batch_size)):
        one(learner, encoded(split.take([0]), learner.backbone.encode), do, blocks, None)
