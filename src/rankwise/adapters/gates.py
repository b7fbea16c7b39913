"""Gates that several methods share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from rankwise.adapters.bank import Blocks, Spec
from rankwise.adapters.context import Context
from rankwise.adapters.fused import Fused, summed
from rankwise.adapters.sites import Site

WEIGHT = "w"
"""Name of the tensor of rank weights."""


@dataclass(frozen=True)
class RankWeights:
    """A learned weight for each rank, whatever the input: the update is s B diag(w) A.

    | symbol | shape | meaning |
    |---|---|---|
    | w | [R] | weights; 1 in a new block |
    """

    linear: ClassVar[bool] = True

    def specs(self, site: Site) -> Mapping[str, Spec]:
        """Return the weights' place."""
        return {WEIGHT: Spec(("rank",), "gate")}

    def start(self, site: Site, rank: int, rng: Generator) -> dict[str, Tensor]:
        """Return ones."""
        return {WEIGHT: torch.ones(rank)}

    def __call__(self, z: Tensor, x: Tensor, blocks: Blocks, context: Context, site: Site, training: bool) -> Tensor:
        """Return w * z."""
        return z * blocks[WEIGHT].to(z.dtype)

    def fused(self, blocks: Blocks, scale: float, training: bool) -> Fused | None:
        """Return the sum over the parts, the weights taken into B."""
        values = [part["B"] * part[WEIGHT].to(part["B"].dtype) for part in blocks.parts]
        return summed([part["A"] for part in blocks.parts], values, scale, training)
