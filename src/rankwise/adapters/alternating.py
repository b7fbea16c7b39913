"""The rule of AltLoRA: the two factors of a pair take turns, with momentum kept in full space (arXiv 2505.12455)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from rankwise.adapters.paired import Factors, Ridge, closed_form, wide
from rankwise.config import Count, Fraction, NotNegative


def realigned(momentum: Tensor, before: Tensor, partner: Tensor, ridge: Ridge) -> Tensor:
    """Return the X for which P^T X comes nearest to P_old^T M: momentum in the partner's new basis (theorem 2)."""
    return ridge.solve(partner @ partner.T, (partner @ before.T) @ momentum)


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
            a, b = wide(pair.a), wide(pair.b).T
            of_a, of_b = self.turn(pair)
            for moves, factor, partner, flipped in ((of_a, pair.a, b, False), (of_b, pair.b, a, True)):
                if not moves:
                    factor.grad = None
                elif factor.grad is not None:
                    gradient = wide(factor.grad)
                    found = closed_form(gradient.T if flipped else gradient, partner, pair.scale, self.ridge)
                    factor.grad.copy_(found.T if flipped else found)

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
            a, b = wide(pair.a).clone(), wide(pair.b).clone().T  # both as they were at the backward
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
