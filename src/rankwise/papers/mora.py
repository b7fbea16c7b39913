"""MoRA: a mixture of self-activated rank-1 experts that grows task by task (arXiv 2506.21035)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Generator, Tensor

from rankwise.adapters import Blocks, Context, Site, Spec
from rankwise.adapters.atoms import EPS, top_atoms
from rankwise.adapters.fused import Fused
from rankwise.adapters.inits import kaiming
from rankwise.adapters.mixture import Mixture
from rankwise.errors import UsageError
from rankwise.learning.recipe import Method


@dataclass(frozen=True)
class SelfActivated(Mixture):
    """Each rank-1 atom (key A_i, value B_i) is an expert whose response z_i = A_i x is its own router score.

        s = z / ||z||                       over ALL atoms, old and new       (Eq. 3; float32 or more)
        w = softmax(top-k(s) / tau)         over all atoms, 0 outside top-k   (Eqs. 4-5)
        w_i <- w_i [s_i >= delta]           at inference only, not renormalised (Eq. 6)
        y = W x + sum_i w_i B_i z_i                                           (Eq. 2)

    | symbol | shape | meaning |
    |---|---|---|
    | z | [..., R] | responses; R = tasks x rank |
    | s | [..., R] | signed scores, sum of squares 1 |
    | w | [..., R] | mixture weights |

    Changed from the authors' code: the scale acts on old and new blocks alike, no atoms exist for a task that has not
    begun, moments are fresh for each task (their TRACE code does otherwise in all three). The rate and the betas are
    the library's (paper: 5e-4, with 0.9 and 0.9999 on CLIP, 0.95 on language).
    """

    linear: ClassVar[bool] = False
    router: Literal["self", "linear"] = "self"
    """Ablation: linear takes the scores from a learned matrix [R, in] instead of from the keys."""
    normalise_keys: bool = False
    """Ablation: scores from A_i / ||A_i||, so that a long key has no advantage."""

    def specs(self, site: Site) -> Mapping[str, Spec]:
        """Only the external router has tensors of its own."""
        return {"router": Spec(("rank", "in"), "router")} if self.router == "linear" else {}

    def start(self, site: Site, rank: int, rng: Generator) -> dict[str, Tensor]:
        """Draw the external router's rows."""
        return {name: kaiming(rank, site.n_in, rng) for name in self.specs(site)}

    def __call__(self, z: Tensor, x: Tensor, blocks: Blocks, context: Context, site: Site, training: bool) -> Tensor:
        """Return w * z; see the class."""
        if self.weights != "softmax":
            return z if self.weights == "dense" else z / z.shape[-1]
        if self.router == "linear" and site.kind in ("embedding", "conv2d"):
            raise UsageError(f"router = 'linear' reads features, site {site.name!r} is of kind {site.kind}; use 'self'")
        wide = z.to(torch.promote_types(z.dtype, torch.float32))
        s = self.score(wide, x, blocks)
        w = self.mix(s, blocks.sizes, prune=self.threshold_in_training or not training)
        if context.sink is not None:
            self.measure(w, blocks, context, site)
        return (w * wide).to(z.dtype)

    def fused(self, blocks: Blocks, scale: float, training: bool) -> Fused | None:
        """Return the same as one product that reads the chosen values only; None under an ablation."""
        plain = self.weights == "softmax" and self.selection == "top-k" and self.level == "atom"
        if not (plain and self.scores == "signed" and self.router == "self" and not self.normalise_keys):
            return None
        prune = self.threshold_in_training or not training
        cut = self.cut(sum(blocks.sizes)) if prune else None
        return top_atoms(blocks, max(self.top_k, 2), self.temperature, cut, scale)

    def score(self, z: Tensor, x: Tensor, blocks: Blocks) -> Tensor:
        """Return s [..., R] in the precision of z, float32 or more: the responses over their norm, over all atoms."""
        if self.router == "linear":
            with torch.autocast(x.device.type, enabled=False):
                z = torch.nn.functional.linear(x.to(z.dtype), blocks["router"].to(z.dtype))
        elif self.normalise_keys:
            z = z / (blocks["A"].to(z.dtype).norm(dim=1) + EPS)
        return z * torch.rsqrt(z.square().sum(-1, keepdim=True) + EPS**2)


METHOD = Method(
    slug="mora",
    title="MoRA: self-activated rank-1 experts",
    paper="arXiv 2506.21035 (ICML 2026, published there as MoRAM)",
    axis="gate",
    gate=SelfActivated,
    growth="append",
    identity_at_creation="exact",
    identity_at_append="moves",
    mergeable=False,
    peft=None,
    parameters="rank * (in + out) a site and task; tasks * rank * (in + out) stored",
    refuses=("merge: the gate depends on the input", "embedding and convolution sites with router = linear"),
    defaults={"train": {"lr": 1e-3}},
)
