"""LoKr: the Kronecker product of a small matrix and a low-rank one (arXiv 2309.14859).

    y = W x + s (C kron (B A)) x;    B = 0 at the start

The rank of a Kronecker product is the product of the ranks, so few parameters reach a high rank.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Generator, Tensor

from rankwise.adapters import Site, Spec, Weight
from rankwise.adapters.bank import BLOCK
from rankwise.adapters.dense import Dense
from rankwise.adapters.inits import kaiming
from rankwise.config import Count
from rankwise.learning.recipe import Method


def divisor(size: int, most: int) -> int:
    """Return the largest divisor of `size` up to `most` and up to the root of `size`.

    >>> divisor(128, 32), divisor(128, 4), divisor(7, 32)
    (8, 4, 1)
    """
    return next(d for d in range(min(most, math.isqrt(size)), 0, -1) if size % d == 0)


@dataclass(frozen=True)
class Kronecker(Dense):
    """dW = s C kron (B A): in = n1 n2 and out = m1 m2 with n1, m1 the largest divisors up to `most` and the root.

    | tensor | shape | start |
    |---|---|---|
    | C | [m1, n1] | drawn |
    | A | [rank, n2] | drawn |
    | B | [m2, rank] | zero |

    The rank of dW is rank(C) times that of B A. A size that is prime has n1 = 1; with both prime C is one number. With
    `decompose` = "small" C is [m2, n2], A [rank, n1], B [m1, rank], and dW = s (B A) kron C.
    """

    most: Count = 32
    """Largest side of the small matrix."""
    decompose: Literal["large", "small"] = "large"
    """Which of the two matrices is B A; C is the other one."""

    def sizes(self, site: Site) -> tuple[tuple[int, int], tuple[int, int]]:
        """Return the shapes of C and of B A."""
        m1, n1 = divisor(site.n_out, self.most), divisor(site.n_in, self.most)
        small, large = (m1, n1), (site.n_out // m1, site.n_in // n1)
        return (small, large) if self.decompose == "large" else (large, small)

    def specs(self, site: Site) -> Mapping[str, Spec]:
        """Return C, one a block, and the factors."""
        core = Spec((BLOCK, "core out", "core in"), "core")
        return {"A": Spec(("rank", "pair in"), "down"), "B": Spec(("pair out", "rank"), "up"), "C": core}

    def start(self, site: Site, rank: int, rng: Generator, weight: Weight) -> dict[str, Tensor]:
        """Return the starting values; see the class."""
        core, (out, n_in) = self.sizes(site)
        return {"A": kaiming(rank, n_in, rng), "B": torch.zeros(out, rank), "C": kaiming(*core, rng)}

    def product(self, block: Mapping[str, Tensor], site: Site) -> Tensor:
        """Return C kron (B A), or (B A) kron C."""
        core, pair = block["C"][0], block["B"] @ block["A"]
        return torch.kron(core, pair) if self.decompose == "large" else torch.kron(pair, core)


METHOD = Method(
    slug="lokr",
    title="LoKr: a Kronecker product with a low-rank matrix",
    paper="arXiv 2309.14859 (ICLR 2024)",
    axis="form: the weight's update",
    form=Kronecker,
    parameters=(
        "divisor(out, most) * divisor(in, most) + rank * (in / divisor(in, most) + out / divisor(out, most)) a site"
    ),
    peft="merged",
    refuses=("export as a LoRA: the update has more ranks", "adapter.init: three factors start in a way of their own"),
)
