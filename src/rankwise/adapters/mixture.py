"""Mixtures: from the scores of ranks or experts to weights, which are zero for all but the best."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rankwise.adapters.bank import Blocks
from rankwise.adapters.context import Context
from rankwise.adapters.sites import Site
from rankwise.config import Count, Positive


def top_softmax(scores: Tensor, k: int, temperature: float = 1.0) -> Tensor:
    """Return softmax(scores / temperature) over the k largest of each row of scores [..., n], and 0 elsewhere."""
    best, index = scores.topk(k, -1)
    return torch.zeros_like(scores).scatter(-1, index, torch.softmax(best / temperature, -1))


def pruned(w: Tensor, s: Tensor, cut: float | None) -> Tensor:
    """Return the weights [..., n] with those of scores below `cut` set to 0; None prunes nothing."""
    return w if cut is None else w * (s >= cut)


@dataclass(frozen=True)
class Mixture:
    """What becomes of the scores s [..., R] of rank-1 atoms: the settings of a gate that says how it scores them.

    w = softmax(top-k(s) / tau) over all atoms, 0 outside top-k; w_i <- w_i [s_i >= delta] where it prunes, after which
    nothing is normalised again. The paper of the texts below is arXiv 2506.21035.
    """

    top_k: Count = 8
    """k, atoms that may act on a token (at least 2: one logit has no gradient). Paper: 16 (CLIP), 8 (language)."""
    temperature: Positive = 0.02
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

    def mix(self, s: Tensor, sizes: tuple[int, ...], *, prune: bool) -> Tensor:
        """Return w [..., R] for scores s [..., R]; with level = block each atom has the weight of its whole block."""
        s = s.abs() if self.scores == "absolute" else s
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
        return top_softmax(s, k, self.temperature)

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
