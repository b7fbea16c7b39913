"""Batches as functions of counters: which rows a step sees depends on (seed, task, step) alone, never on an
iterator."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rankwise.errors import DataError
from rankwise.seeds import generator
from rankwise.streams.augment import views
from rankwise.streams.base import Split

Encode = Callable[[Sequence[Any] | Tensor], dict[str, Tensor]]
"""Raw inputs -> the tensors a model takes; pure."""
POOL = 50
"""Batches whose rows are sorted by length together: more saves little padding and mixes lengths less."""


@dataclass(frozen=True)
class Batch:
    """Encoded examples: every tensor has one row an example."""

    inputs: Mapping[str, Tensor]
    labels: Tensor
    """[N] stream-wide class ids."""
    ids: Tensor
    """[N] row numbers in the source."""

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.labels)

    def cut(self, parts: int) -> list[Batch]:
        """Cut into `parts` runs of nearly equal length, in order; some are empty if there are fewer examples."""
        bounds = [len(self) * i // parts for i in range(parts + 1)]
        return [self.rows(slice(a, b)) for a, b in zip(bounds, bounds[1:], strict=False)]

    def rows(self, where: slice | Tensor) -> Batch:
        """Return the examples in `where`: a run of them, or places [n], which may repeat."""
        return Batch({k: v[where] for k, v in self.inputs.items()}, self.labels[where], self.ids[where])

    def to(self, device: torch.device) -> Batch:
        """Move to `device`."""
        return Batch({k: v.to(device) for k, v in self.inputs.items()}, self.labels.to(device), self.ids.to(device))


@dataclass(frozen=True)
class Loader:
    """Random access to the batches of one split: batch i is the same whenever and wherever it is asked for."""

    split: Split
    encode: Encode
    batch_size: int
    seed: int
    name: str
    lengths: Tensor | None = None
    """[N] length of each row; where given, rows of similar length come together. See `lengths_of`."""
    augment: Sequence[str] = ()
    """Operations that give each row another view in each epoch. See `augment.views`."""

    @property
    def steps_per_epoch(self) -> int:
        """Batches that show every row once; the last may be shorter."""
        return -(-len(self.split) // self.batch_size)

    def positions(self, step: int) -> Tensor:
        """Return the rows of batch `step`: a cut of the permutation drawn for its epoch."""
        epoch, i = divmod(step, self.steps_per_epoch)
        order = torch.randperm(len(self.split), generator=generator(self.seed, "order", self.name, epoch))
        if self.lengths is not None:
            order = bucketed(order, self.lengths, self.batch_size)
            places = torch.randperm(self.steps_per_epoch, generator=generator(self.seed, "batches", self.name, epoch))
            i = int(places[i])
        return order[i * self.batch_size : (i + 1) * self.batch_size]

    def batch(self, step: int) -> Batch:
        """Return batch `step`, counted over all epochs."""
        rows, epoch = self.split.take(self.positions(step)), step // self.steps_per_epoch
        return encoded(views(rows, self.augment, self.seed, self.name, epoch), self.encode)

    def stream(self, start: int, stop: int, workers: int) -> Iterator[Batch]:
        """Yield batches start .. stop - 1, prepared ahead by `workers` threads if there are any."""
        if not workers:
            yield from (self.batch(step) for step in range(start, stop))
            return
        with ThreadPoolExecutor(workers) as pool:
            ahead: list[Future[Batch]] = []
            for step in range(start, stop):
                while len(ahead) <= workers and step + len(ahead) < stop:
                    ahead.append(pool.submit(self.batch, step + len(ahead)))
                yield ahead.pop(0).result()


def bucketed(order: Tensor, lengths: Tensor, batch_size: int) -> Tensor:
    """Sort each run of batches of `order` [N] by length, so that rows of similar length share a batch.

    A run is POOL batches, but at most a quarter of the epoch: which rows meet changes with the permutation.
    """
    pool = max(1, min(POOL, len(order) // (4 * batch_size)))
    runs = order.split(pool * batch_size)
    return torch.cat([run[lengths[run].argsort(stable=True)] for run in runs])


def lengths_of(split: Split) -> Tensor:
    """Return how long each row's text is, in characters, both texts of a pair together: [N]. Images have no length."""
    rows = [row if isinstance(row, tuple) else (row,) for row in split.inputs]
    if not all(isinstance(text, str) for row in rows for text in row):
        raise DataError("train.bucket sorts texts by length; this stream holds images: leave it out")
    return torch.tensor([sum(len(text) for text in row) for row in rows])


def encoded(split: Split, encode: Encode) -> Batch:
    """Encode all rows of `split`."""
    return Batch(encode(split.inputs), split.labels, split.ids)


def in_order(split: Split, encode: Encode, size: int) -> Iterator[Batch]:
    """Yield all rows of `split` in order, `size` at a time."""
    for start in range(0, len(split), size):
        yield encoded(split.take(torch.arange(start, min(start + size, len(split)))), encode)


def concat(splits: Sequence[Split]) -> Split:
    """Put the rows of several splits into one, in order; rows are numbered anew, since their sources differ."""
    if len(splits) == 1:
        return splits[0]
    inputs = [split.inputs for split in splits]
    shapes = {tuple(part.shape[1:]) if isinstance(part, Tensor) else None for part in inputs}
    together = all(isinstance(part, Tensor) for part in inputs) and len(shapes) == 1
    rows: Any = (
        torch.cat([torch.as_tensor(part) for part in inputs]) if together else [row for part in inputs for row in part]
    )
    labels = torch.cat([split.labels for split in splits])
    return Split(rows, labels, torch.arange(len(labels)))
