"""What is usual for a descriptor, by its errors in training, and which features are not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from rankwise.adapters import Bank
from rankwise.papers.sema.branch import Modular
from rankwise.strategies import Host

FEWEST = 3  # recorded errors below which a descriptor judges nothing
FLOOR = 1e-8  # smallest standard deviation, relative to the mean


class Records:
    """The last training errors of each descriptor, by "site/label of its adapter"."""

    def __init__(self) -> None:
        """Start without records."""
        self.errors: dict[str, Tensor] = {}
        self.fresh: list[tuple[Tensor, Tensor]] = []  # (ids, errors) of the step under way

    def hear(self, ids: Tensor, errors: Tensor) -> None:
        """Take the errors [n, K] of a part of the step under way, of the examples `ids` [n]."""
        self.fresh.append((ids.cpu(), errors.detach().cpu()))

    def write(self, host: Host, keys: Sequence[str], window: int) -> None:
        """Record the step's errors in the order of its batch, whatever parts and processes it was cut into.

        `keys` names the descriptors that learn; of each, the last `window` errors stay.
        """
        ids = host.batch.ids
        sums = torch.zeros(len(ids), len(keys) + 1)
        for own, errors in self.fresh:
            rows = torch.cat([errors, torch.ones(len(own), 1)], 1)
            sums.index_add_(0, (ids[:, None] == own).int().argmax(0), rows)
        host.add_up([sums])
        self.fresh.clear()
        for key, errors in zip(keys, (sums[:, :-1] / sums[:, -1:]).T, strict=True):
            self.errors[key] = torch.cat([self.errors.get(key, errors[:0]), errors])[-window:]

    def surprise(self, form: Modular, site: str, bank: Bank, z: Tensor) -> Tensor:
        """Return |e - mu| / sigma [n, K] of mean tokens z [n, in]; 0 for descriptors with too few records."""
        found = form.errors(bank.view(), z)
        for k, label in enumerate(bank.labels):
            seen = self.errors.get(f"{site}/{label}", torch.empty(0)).to(found)
            if len(seen) < FEWEST:
                found[:, k] = 0
                continue
            mean = seen.mean()
            found[:, k] = (found[:, k] - mean).abs() / seen.std().clamp_min(FLOOR * mean)
        return found


def shallowest(z: Mapping[str, Tensor], batch: int, start: int, threshold: float) -> tuple[str | None, int]:
    """Return (the site that the first surprising batch surprises, the batch to go on with): (None, `start`) if none is.

    z [n, K], by site from the input on, are |z| of all rows for each of its descriptors. Batches of `batch` rows are
    gone over from `start` to the last, then from the first; a short last one joins the one before. One is surprising
    where the mean over its rows is above `threshold` for every descriptor of a site.
    """
    rows = len(next(iter(z.values())))
    count = max(rows // batch, 1)
    bounds = [*range(0, count * batch, batch), rows]
    for place in (*range(start, count), *range(min(start, count))):
        for name, scores in z.items():
            if scores[bounds[place] : bounds[place + 1]].mean(0).min() > threshold:
                return name, place + 1
    return None, start
