"""MoRA: a mixture of self-activated rank-1 experts that grows task by task (arXiv 2506.21035)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Generator, Tensor

from rankwise.adapters import Blocks, Context, Site, Spec
from rankwise.adapters.atoms import EPS, top_atoms
from rankwise.adapters.fused import Fused
from rankwise.adapters.inits import kaiming
from rankwise.errors import UsageError
from rankwise.learning.recipe import Method


@dataclass(frozen=True)
class SelfActivated:
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
    begun, moments are fresh for each task (their TRACE code does otherwise in all three).
    """

    linear: ClassVar[bool] = False
    top_k: int = 8
    """k, atoms that may act on a token (at least 2: one logit has no gradient). Paper: 16 (CLIP), 8 (language)."""
    temperature: float = 0.02
    """tau of the softmax. Lower: nearer to one atom a token; too low starves atoms. Paper: 0.01 and 0.03."""
    threshold: float = 0.0
    """delta: atoms scoring below it are pruned at inference. Raise it to keep the base on foreign inputs. Paper: 0.2,
    which fits pools of 16 to 160 atoms; in smaller pools the best score is above it anyway. 0 prunes negative responses
    only, -1 nothing."""
    threshold_unit: Literal["absolute", "pool"] = "absolute"
    """pool: the threshold counts in units of 1/sqrt(R), the size of a score when all atoms respond alike."""
    threshold_in_training: bool = False
    """Ablation: prune in training too."""
    weights: Literal["softmax", "dense", "uniform"] = "softmax"
    """Ablation: dense sets w = 1 (append-and-freeze LoRA), uniform w = 1/R."""
    selection: Literal["top-k", "all"] = "top-k"
    """Ablation: all takes the softmax over every atom."""
    scores: Literal["signed", "absolute"] = "signed"
    """Ablation: absolute lets a strongly negative response act."""
    level: Literal["atom", "block"] = "atom"
    """Ablation: block gates and prunes the atoms of a task together by the sum of their scores, top_k / rank blocks."""
    router: Literal["self", "linear"] = "self"
    """Ablation: linear takes the scores from a learned matrix [R, in] instead of from the keys."""
    normalise_keys: bool = False
    """Ablation: scores from A_i / ||A_i||, so that a long key has no advantage."""

    def __post_init__(self) -> None:
        """Refuse settings outside their range."""
        if self.top_k < 1 or self.temperature <= 0:
            raise ValueError("top_k must be at least 1 and temperature above 0")

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
        s = z * torch.rsqrt(z.square().sum(-1, keepdim=True) + EPS**2)
        return s.abs() if self.scores == "absolute" else s

    def mix(self, s: Tensor, sizes: tuple[int, ...], *, prune: bool) -> Tensor:
        """Return w [..., R] for scores s [..., R]; with level = block each atom has the weight of its whole block."""
        cut = self.cut(sum(sizes)) if prune else None
        if self.level == "atom":
            return pruned(self.sparse(s, self.top_k), s, cut)
        sums = torch.stack([block.sum(-1) for block in s.split(list(sizes), -1)], -1)
        w = pruned(self.sparse(sums, round(self.top_k / max(sizes))), sums, cut)
        return w.repeat_interleave(torch.tensor(sizes, device=s.device), -1, output_size=sum(sizes))

    def sparse(self, s: Tensor, k: int) -> Tensor:
        """Return softmax(s / tau) over the k largest entries of each row, 0 elsewhere."""
        k = min(max(k, 2), s.shape[-1])
        if self.selection == "all" or k == s.shape[-1]:
            return torch.softmax(s / self.temperature, -1)
        best, index = s.topk(k, -1)
        return torch.zeros_like(s).scatter(-1, index, torch.softmax(best / self.temperature, -1))

    def cut(self, atoms: int) -> float:
        """Return delta for a pool of `atoms`."""
        return self.threshold / math.sqrt(atoms) if self.threshold_unit == "pool" else self.threshold

    def measure(self, w: Tensor, blocks: Blocks, context: Context, site: Site) -> None:
        """Report, over real tokens: atoms that act, tokens on which any does, and each block's share of the mixture."""
        assert context.sink is not None
        pieces = w.split(list(blocks.sizes), -1)
        share = torch.stack([w.mean(-1) if self.level == "block" else w.sum(-1) for w in pieces], -1)
        context.sink.put(site.name, "active_atoms", (w > 1e-3).sum(-1, keepdim=True), context.tokens)
        context.sink.put(site.name, "pass_rate", (w > 0).any(-1, keepdim=True), context.tokens)
        context.sink.put(site.name, "block_share", share, context.tokens)


def pruned(w: Tensor, s: Tensor, cut: float | None) -> Tensor:
    """Return the weights [..., R] with those of scores below `cut` set to 0; None prunes nothing."""
    return w if cut is None else w * (s >= cut)


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
