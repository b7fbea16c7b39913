"""Sinks that keep what sites read or add in a forward, an example a row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from rankwise.adapters.context import Sink
from rankwise.adapters.model import using
from rankwise.adapters.sites import Site


class Means(Sink):
    """Keeps, for each site, the mean over real tokens of what it read (x) or added (delta) in the newest forward."""

    def __init__(self, what: Literal["x", "delta"]) -> None:
        """Start empty."""
        super().__init__()
        self.what = what
        self.rows: dict[str, Tensor] = {}
        """Site name -> [n, width], without a graph."""

    def saw(self, site: Site, x: Tensor, delta: Tensor, tokens: Tensor | None) -> None:
        """Keep the means; an assignment, so a forward that is repeated does not count twice."""
        values = (x if self.what == "x" else delta).detach()
        self.rows[site.name] = mean_tokens(values.movedim(1, -1) if site.kind == "conv2d" else values, tokens)


def mean_tokens(values: Tensor, tokens: Tensor | None) -> Tensor:
    """Average values [n, ..., d] over what lies between, for tokens [n, S] only over the true ones: [n, d]."""
    if values.ndim == 2:
        return values
    if tokens is None or tokens.shape != values.shape[:-1]:
        return values.flatten(1, -2).mean(1)
    real = tokens.to(values.dtype)
    return (values * real[..., None]).sum(1) / real.sum(1, keepdim=True).clamp_min(1)


@torch.no_grad()
def means_of(model: nn.Module, what: Literal["x", "delta"], run: Callable[[], object]) -> dict[str, Tensor]:
    """Return what `Means` keeps of the one forward that `run` does: site name -> [n, width]."""
    sink = Means(what)
    with using(model, sink=sink):
        run()
    return sink.rows
