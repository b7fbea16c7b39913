"""From prompts to weights of stacks: what the router reads, what it is taught, and how its answer is used."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from rankwise.adapters import banks_of, using
from rankwise.papers.brainstacks.outcomes import discover, targets
from rankwise.papers.brainstacks.rounds import ROUND
from rankwise.papers.brainstacks.router import Fitting, MetaRouter, fit, states_read
from rankwise.papers.brainstacks.settings import StackSettings
from rankwise.strategies import Host
from rankwise.streams import Batch, Split


def stacks(host: Host) -> dict[str, int]:
    """Return the label of each stack with the index of its domain."""
    indices = {task.name: task.index for task in host.tasks}
    held = {label for _, bank in banks_of(host.model).values() for label in bank.labels}
    return {label: indices[label.rpartition(ROUND)[0]] for label in sorted(held)}


def mixture(host: Host, w: Tensor) -> dict[str, Tensor]:
    """Return the weight of each stack for each example, from that of its domain: w [n, D]."""
    return {label: w[:, domain] for label, domain in stacks(host).items()}


def bare_states(host: Host, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return (what the router reads of the bare base [n, S, d], which tokens belong to the prompt [n, S])."""
    with torch.no_grad(), using(host.model, blocks=(), mix=None):
        h = states_read(host.backbone.states(batch.inputs)[1])
    real = batch.inputs.get("attention_mask", torch.ones(h.shape[:2], device=h.device)).bool()
    beside = "answer_mask" in batch.inputs and "answer_ids" not in batch.inputs  # answers stand in the same row
    return h, real & ~batch.inputs["answer_mask"].bool() if beside else real


@torch.no_grad()
def weights(router: MetaRouter, host: Host, batch: Batch, settings: StackSettings) -> Tensor:
    """Return the weight of each domain for each prompt, as it is used: [n, D]."""
    h, tokens = bare_states(host, batch)
    p = router.to(h.device)(h, tokens).sigmoid()
    return floored(torch.where(p > settings.gate, p, 0.0), settings.floor)


def floored(w: Tensor, floor: float) -> Tensor:
    """Return weights [n, D] with the first domain's at its least."""
    return torch.cat([w[:, :1].clamp_min(floor), w[:, 1:]], 1)


def teach(host: Host, rows: Tensor, settings: StackSettings, seed: int) -> MetaRouter:
    """Train a router on training rows [n, 2] of all domains so far and the combinations measured on them."""
    domains, wanted, read = int(rows[:, 0].max()) + 1, list[Tensor](), list[tuple[Tensor, Tensor]]()
    for d in range(domains):
        split = host.tasks[d].train.take(rows[rows[:, 0] == d, 1])
        losses = partial(losses_under, host, split, settings.floor)
        chosen, _ = discover(losses, len(split), domains, settings.threshold)
        wanted.append(targets(chosen, d, settings.prior))

        def look(batch: Batch) -> Tensor:
            read.append(bare_states(host, batch))
            return batch.labels

        host.each(split, look)
    h, tokens = (pad_sequence([row for part in parts for row in part], True) for parts in zip(*read, strict=True))
    how = Fitting(settings.width, settings.epochs, settings.lr)
    return fit(h, tokens, torch.cat(wanted).to(h.device), how, seed)


def losses_under(host: Host, split: Split, floor: float, w: Tensor) -> Tensor:
    """Return the loss of each row of `split` under its own weights of the domains w [n, D]: [n]."""
    place = {int(row): i for i, row in enumerate(split.ids)}

    def measured(batch: Batch) -> Tensor:
        own = w[[place[int(row)] for row in batch.ids]]
        own = torch.where(own.any(1, keepdim=True), floored(own, floor), own)  # no domain at all is the bare base
        with using(host.model, mix=mixture(host, own.to(batch.labels.device))):
            return host.losses(batch, host.seen)

    return host.each(split, measured).float().cpu()
