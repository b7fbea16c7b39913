"""The null-space projector: where earlier stacks write, a later domain's stack writes nothing."""

from __future__ import annotations

import torch
from torch import Tensor

from rankwise.adapters import banks_of
from rankwise.adapters.probes import means_of
from rankwise.strategies import Host
from rankwise.streams import Batch, Task


def directions(host: Host, rows: Tensor, count: int) -> dict[str, Tensor]:
    """Return, by site, the main directions [out, k <= count] of the mean updates that all stacks write for examples.

    `rows` [n, 2] are training rows (task index, position). One row an example: the sum of the stacks' updates, averaged
    over its tokens; not centred. Memory: n times the widths of all sites together.
    """
    found = [written(host, host.tasks[t], rows[rows[:, 0] == t, 1]) for t in rows[:, 0].unique().tolist()]
    banks = banks_of(host.model)
    per_site = torch.cat(found).split([site.n_out for site, _ in banks.values()], 1)
    return {name: principal(updates, count) for name, updates in zip(banks, per_site, strict=True)}


def written(host: Host, task: Task, places: Tensor) -> Tensor:
    """Return what all stacks add at each site for training rows of `task`, a token's mean: [n, sum of out]."""

    def updates(batch: Batch) -> Tensor:
        added = means_of(host.model, "delta", lambda: host.forward(batch))
        return torch.cat([added[name].float() for name in banks_of(host.model)], 1)

    return host.each(task.train.take(places), updates)


def principal(rows: Tensor, count: int) -> Tensor:
    """Return an orthonormal basis [width, k] of the main directions of rows [n, width], k <= count and their rank.

    By a full decomposition, where the authors draw a random one for many rows: a function of the rows alone.
    """
    _, sizes, found = torch.linalg.svd(rows, full_matrices=False)
    k = min(count, int((sizes > 1e-6 * sizes[0].clamp_min(1e-30)).sum()))
    return found[:k].T.contiguous()


def project(b: Tensor, basis: Tensor) -> None:
    """Take out of the columns of b [out, r], in place, what lies in the span of `basis` [out, k]."""
    basis = basis.to(b)
    b.sub_(basis @ (basis.T @ b))
