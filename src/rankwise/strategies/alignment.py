"""How far each site's weight keeps the direction of what it reads: the layer importance of OSFT (arXiv 2504.07097)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from rankwise.adapters import Site, banks_of, read_weight
from rankwise.adapters.edits import owner_of
from rankwise.strategies.host import Host
from rankwise.streams import Batch, Split, Task


def earlier_importance(host: Host, task: Task, examples: int) -> dict[str, float]:
    """Return I of each site on up to `examples` rows of the task before `task`; 1 in the first task."""
    if not task.index:
        return dict.fromkeys(banks_of(host.model), 1.0)
    rows = host.tasks[task.index - 1].train
    return importance(host, rows.take(range(min(examples, len(rows)))))


@torch.no_grad()
def importance(host: Host, rows: Split) -> dict[str, float]:
    """Return I of each site: the mean of cos(x, W x) over the real tokens of `rows`, divided by its mean over sites.

    Where in and out differ, both are cut to the first min(in, out) coordinates. Cosines below zero count as zero, so
    that the mean cannot be: they come to nothing where W does not keep its input's direction.
    """
    sites = [site for site, _ in banks_of(host.model).values()]
    found: dict[str, float] = {}

    def listen(site: Site, module: nn.Module, tokens: Tensor | None) -> Callable[[Any, tuple[Tensor, ...]], None]:
        def hear(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x, width = inputs[0].float(), min(site.n_in, site.n_out)
            y = x @ read_weight(module, site).to(x).T
            cosine = nn.functional.cosine_similarity(x[..., :width], y[..., :width], dim=-1)
            real = tokens is not None and tokens.shape == cosine.shape
            found[site.name] = float((cosine[tokens] if real else cosine).mean())

        return hear

    def measure(batch: Batch) -> Tensor:
        mask = batch.inputs.get("attention_mask")
        tokens = None if mask is None else mask.bool()
        bases = [(site, owner_of(host.model, site).base) for site in sites]
        handles = [base.register_forward_pre_hook(listen(site, base, tokens)) for site, base in bases]
        host.forward(batch)
        for handle in handles:
            handle.remove()
        return torch.tensor([[found[site.name] for site in sites]] * len(batch)).to(batch.labels.device)

    means = host.each(rows, measure).mean(0).clamp_min(0)
    shares = (means / means.mean()).nan_to_num(1.0)
    return {site.name: float(share) for site, share in zip(sites, shares, strict=True)}
