"""Gradients of a pair of factors turned into projections of the full gradient, by solves with matrices of rank size.

W = W0 + s B A with A [r, in], B [out, r]; G = dL/dW is never formed. A factor is seen here with its ranks first, A as
it is and B transposed, so that one formula serves both: `partner` is the other factor, `gradient` that of s B A.
Solves are in float32 (float64 for float64 factors). Source: arXiv 2505.12455 (theorem 1).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

LEAST = 1e-20  # what a relative ridge is taken of at least: the Gram matrix of a factor of zeros stays invertible


@dataclass(frozen=True)
class Ridge:
    """What is added to the diagonal of a Gram matrix P P^T before it is solved with."""

    size: float
    relative: bool = False
    """True: `size` counts in units of the mean of the diagonal."""

    def solve(self, gram: Tensor, right: Tensor) -> Tensor:
        """Return (gram + ridge)^-1 right for [r, r] and [r, n]; not finite where the sum is singular."""
        unit = gram.diagonal().mean().clamp_min(LEAST) if self.relative else 1.0
        eye = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
        return torch.linalg.solve_ex(gram + self.size * unit * eye, right).result


def wide(tensor: Tensor) -> Tensor:
    """Return the values in float32 or more, without graph."""
    return tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32))


def closed_form(gradient: Tensor, partner: Tensor, scale: float, ridge: Ridge) -> Tensor:
    """Return (1/s^2) (P P^T + ridge)^-1 g: the X for which s P^T X comes nearest to G (theorem 1). All [r, n]."""
    return ridge.solve(partner @ partner.T, gradient) / scale**2


@dataclass(frozen=True)
class Factors:
    """The live factors of one site."""

    a: nn.Parameter
    """A [r, in]."""
    b: nn.Parameter
    """B [out, r]."""
    scale: float
    """s of s B A."""
