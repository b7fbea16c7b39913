"""Gradients of a pair of factors turned into projections of the full gradient, by solves with matrices of rank size.

W = W0 + s B A with A [r, in], B [out, r]; G = dL/dW is never formed. A factor is seen here with its ranks first, A as
it is and B transposed, so that one formula serves both: `partner` is the other factor, `gradient` that of s B A.
Solves are in float32 (float64 for float64 factors). Source: arXiv 2505.12455 (theorems 1 and 2), 2407.18242.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from rankwise.config import Count, Fraction, NotNegative

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


def realigned(momentum: Tensor, before: Tensor, partner: Tensor, ridge: Ridge) -> Tensor:
    """Return the X for which P^T X comes nearest to P_old^T M: momentum in the partner's new basis (theorem 2)."""
    return ridge.solve(partner @ partner.T, partner @ (before.T @ momentum))


Freedom = Literal["sylvester", "zero", "symmetric"]


def freedom(a: Tensor, b: Tensor, down: Tensor, up: Tensor, scale: float, ridge: Ridge, choice: Freedom) -> Tensor:
    """Return the matrix X [r, r] of LoRA-Pro, which moves no product: it says how the factors share one step.

    sylvester solves B^T B X + X A A^T = -(1/s^2) (B^T B)^-1 g_A A^T: the gradients nearest to the raw ones. symmetric
    is -(1/2s^2) (B^T B)^-1 B^T g_B (A A^T)^-1.

    Args:
        a: A [r, in].
        b: B [out, r].
        down: g_A.
        up: g_B.
        scale: s.
        ridge: on both Gram matrices.
        choice: which X.

    """
    rows, columns = a @ a.T, b.T @ b
    if choice == "symmetric":
        return -0.5 * ridge.solve(rows, ridge.solve(columns, b.T @ up).T).T / scale**2
    if choice == "zero":
        return torch.zeros_like(rows)
    right = -ridge.solve(columns, down @ a.T) / scale**2
    (left_values, left), (right_values, basis) = torch.linalg.eigh(columns), torch.linalg.eigh(rows)
    sums = (left_values.clamp_min(0)[:, None] + right_values.clamp_min(0)).clamp_min(ridge.size)
    return left @ (left.T @ right @ basis / sums) @ basis.T


def best_together(
    a: Tensor, b: Tensor, down: Tensor, up: Tensor, scale: float, ridge: Ridge, x: Tensor
) -> tuple[Tensor, Tensor]:
    """Return LoRA-Pro's pair of gradients (of A, of B), whose joint move is P_c(B) G + (I - P_c(B)) G P_r(A).

    g_A* = (1/s^2) (B^T B)^-1 g_A + X A and g_B* = (1/s^2) (I - P_c(B)) g_B (A A^T)^-1 - B X (arXiv 2407.18242).
    """
    rest = up - b @ ridge.solve(b.T @ b, b.T @ up)
    return closed_form(down, b.T, scale, ridge) + x @ a, closed_form(rest.T, a, scale, ridge).T - b @ x


@dataclass(frozen=True)
class Factors:
    """The live factors of one site."""

    a: nn.Parameter
    """A [r, in]."""
    b: nn.Parameter
    """B [out, r]."""
    scale: float
    """s of s B A."""

    def precondition(self, ridge: Ridge, *, of_a: bool = True, of_b: bool = True) -> None:
        """Put the closed forms in the place of gradients; the factor that is left out loses its gradient."""
        a, b = wide(self.a), wide(self.b)
        for learns, factor, solve in (
            (of_a, self.a, lambda g: closed_form(g, b.T, self.scale, ridge)),
            (of_b, self.b, lambda g: closed_form(g.T, a, self.scale, ridge).T),
        ):
            if not learns:
                factor.grad = None
            elif factor.grad is not None:
                factor.grad.copy_(solve(wide(factor.grad)))


@dataclass(frozen=True)
class Alternation:
    """The settings of `PairedRule`."""

    beta1: Fraction = 0.9
    """Averaging factor of the first moment; 0 uses each gradient alone."""
    beta2: Fraction = 0.999
    """Averaging factor of the second moment."""
    second_moment: bool = False
    """Divide by the root of an elementwise second moment of the preconditioned gradient: AltLoRA+."""
    eps: NotNegative = 1e-4
    """Added to that root."""
    ridge: NotNegative = 1e-6
    """Added to the diagonal of the Gram matrices. Larger damps the step while the partner is small."""
    relative_ridge: bool = False
    """Count the ridge in units of the mean of the diagonal, for factors that are tiny throughout."""
    first: Literal["B", "A", "both"] = "B"
    """Factor that moves first; B, as A's gradient is zero while B is. both: no turns, each moves in every step."""
    period: Count = 1
    """Steps before the other factor's turn."""
    realign: bool = True
    """Express the first moment in the partner's new basis before it is used. Ablation: keep it as it is."""
    bias_correction: bool = True
    """Divide the moments by 1 - beta^n, n counting a factor's own steps."""


class PairedRule(torch.optim.Optimizer):
    """AltLoRA and AltLoRA+ (arXiv 2505.12455, algorithms 1 and 2): one factor a step, momentum kept in full space.

        M <- beta1 Mt + (1 - beta1) g~,    factor <- factor - lr (M / (sqrt(V) + eps or 1) + decay factor)

    with g~ of `closed_form` and Mt of `realigned`. Call `precondition` after the backward, then, if wanted, clip, then
    `step`. A pair counts its own steps, so one that gets no gradient waits; what is remembered of a factor are tensors.
    """

    def __init__(self, pairs: Sequence[Factors], rule: Alternation, lr: float, weight_decay: float = 0.0) -> None:
        """Take over both factors of every pair, in one group."""
        super().__init__([p for pair in pairs for p in (pair.a, pair.b)], {"lr": lr, "weight_decay": weight_decay})
        self.pairs, self.rule, self.ridge = tuple(pairs), rule, Ridge(rule.ridge, rule.relative_ridge)

    def precondition(self) -> None:
        """Replace the gradients of the factors whose turn it is by their closed forms, and drop those of the others."""
        for pair in self.pairs:
            a, b = self.turn(pair)
            pair.precondition(self.ridge, of_a=a, of_b=b)

    def turn(self, pair: Factors) -> tuple[bool, bool]:
        """Return whether A and whether B moves in the step to come."""
        if self.rule.first == "both":
            return True, True
        swapped = (self._steps(pair.a) + self._steps(pair.b)) // self.rule.period % 2 == 1
        return swapped != (self.rule.first == "A"), swapped != (self.rule.first == "B")

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Move every factor that has a gradient; there is no closure to call."""
        group = self.param_groups[0]
        for pair in self.pairs:
            a, b = wide(pair.a), wide(pair.b).T  # both as they were at the backward
            for factor, partner, flipped in ((pair.a, b, False), (pair.b, a, True)):
                if factor.grad is not None:
                    direction = self._direction(factor, partner, flipped)
                    value = wide(factor)
                    factor.copy_(value - group["lr"] * (direction + group["weight_decay"] * value))

    def _direction(self, factor: nn.Parameter, partner: Tensor, flipped: bool) -> Tensor:
        """Take the gradient into the factor's moments; return the direction against which it moves."""
        assert factor.grad is not None
        gradient, rule = wide(factor.grad), self.rule
        held = self.state[factor] or self._start(gradient, partner)
        first = held["first"].T if flipped else held["first"]
        first = realigned(first, held["partner"], partner, self.ridge) if rule.realign else first
        first = rule.beta1 * (first.T if flipped else first) + (1 - rule.beta1) * gradient
        held = {**held, "step": held["step"] + 1, "first": first, "partner": partner.clone()}
        if rule.second_moment:
            held["second"] = rule.beta2 * held["second"] + (1 - rule.beta2) * gradient.square()
        self.state[factor] = held
        corrected = [1 - beta ** int(held["step"]) if rule.bias_correction else 1 for beta in (rule.beta1, rule.beta2)]
        first = first / corrected[0]
        return first / ((held["second"] / corrected[1]).sqrt() + rule.eps) if rule.second_moment else first

    def _start(self, gradient: Tensor, partner: Tensor) -> dict[str, Tensor]:
        names = ("first", "second") if self.rule.second_moment else ("first",)
        moments = {name: torch.zeros_like(gradient) for name in names}
        return {"step": torch.zeros((), dtype=torch.long), "partner": partner.clone(), **moments}

    def _steps(self, factor: nn.Parameter) -> int:
        return int(self.state[factor]["step"]) if self.state[factor] else 0
