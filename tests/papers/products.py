"""What tests of rules over pairs of factors share: a product of two on a toy, and projections by pseudo-inverses."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rankwise.adapters.alternating import Alternation, PairedRule
from rankwise.adapters.paired import Ridge
from rankwise.claims.altlora import Product, alternate, bent_product
from rankwise.seeds import generator

OUT, IN, RANK, SCALE = 12, 15, 3, 1.7
NONE = Ridge(0.0)


def draw(*size: int) -> Tensor:
    return torch.randn(*size, generator=generator(0, "draw", *size)).double()


def full_gradient(toy: Product) -> Tensor:
    weight = toy.weight.detach().requires_grad_()
    toy.loss(weight).backward()
    assert weight.grad is not None
    return weight.grad


def onto_columns(b: Tensor) -> Tensor:
    return b @ torch.linalg.pinv(b)


def onto_rows(a: Tensor) -> Tensor:
    return torch.linalg.pinv(a) @ a


def factors(toy: Product) -> tuple[Tensor, Tensor]:
    return toy.factors.a.detach().clone(), toy.factors.b.detach().clone()


def rule_of(toy: Product, lr: float = 0.1, decay: float = 0.0, **settings: Any) -> PairedRule:
    return PairedRule([toy.factors], Alternation(**{"ridge": 0.0, **settings}), lr, decay)


def drawn_gradients() -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return A, B, their gradients and the full gradient that these are of."""
    a, b, g = draw(RANK, IN), draw(OUT, RANK), draw(OUT, IN)
    return a, b, SCALE * b.T @ g, SCALE * g @ a.T, g


def scaled_run(scale: float, **settings: Any) -> Tensor:
    toy = bent_product(0)
    other = Product(toy.model, toy.factors, toy.loss)
    rule = PairedRule([type(toy.factors)(toy.factors.a, toy.factors.b, scale)], Alternation(**settings), 0.3)
    toy.put(toy.factors.a, toy.factors.b / scale)
    for _ in range(20):
        other.model.zero_grad()
        toy.loss(scale * toy.factors.b @ toy.factors.a).backward()
        rule.precondition()
        rule.step()
    return (scale * toy.factors.b @ toy.factors.a).detach()


def check_the_factor_that_waits(remembered: set[str], **settings: Any) -> None:
    """Check that it keeps every bit, its moments and its counter too; `remembered` names what is kept of a factor."""
    toy = bent_product(0)
    rule = rule_of(toy, ridge=1e-6, decay=0.1, **settings)
    alternate(toy, rule, 4)
    for moving, waiting in ((toy.factors.b, toy.factors.a), (toy.factors.a, toy.factors.b)):
        before = waiting.detach().clone(), {k: v.clone() for k, v in rule.state[waiting].items()}
        held = moving.detach().clone()
        alternate(toy, rule, 1)
        assert waiting.grad is None and torch.equal(waiting, before[0]) and not torch.equal(moving, held)
        assert all(torch.equal(rule.state[waiting][k], v) for k, v in before[1].items())
        assert set(before[1]) == remembered
