"""AltLoRA+: the alternating rule with a second moment, by hand; what it keeps of AltLoRA and what it gives up."""

from __future__ import annotations

import pytest
import torch
from digit_runs import snapshots
from products import NONE, check_the_factor_that_waits, factors, full_gradient, rule_of, scaled_run
from torch import Tensor

from rankwise import papers
from rankwise.adapters.paired import closed_form
from rankwise.claims.altlora import alternate, bent_product, relative
from rankwise.config import parse_record
from rankwise.errors import UsageError
from rankwise.papers.altlora_plus import Plus


def test_it_is_the_alternating_rule_with_a_second_moment():
    plus, plain = papers.method("altlora-plus").dynamics, papers.method("altlora").dynamics
    assert plus is not None and plain is not None
    assert plus.Settings().second_moment and not plain.Settings().second_moment
    with pytest.raises(UsageError, match="period = 0"):
        parse_record(Plus, {"period": 0}, "adapter.dynamics")


def test_three_steps_by_hand():
    """B, A, B: M and V of the closed forms, each factor by its own count; M is carried over to the new A, V is not."""
    lr, beta1, beta2, eps, decay = 0.1, 0.9, 0.99, 1e-3, 0.2
    toy = bent_product(0)
    settings = {"second_moment": True, "beta1": beta1, "beta2": beta2, "eps": eps}
    rule = rule_of(toy, lr, decay, **settings)

    def moved(value: Tensor, first: Tensor, second: Tensor, n: int) -> Tensor:
        pace = (second / (1 - beta2**n)).sqrt() + eps
        return value - lr * (first / (1 - beta1**n) / pace + decay * value)

    (a, b), g = factors(toy), full_gradient(toy)
    of_b = closed_form((g @ a.T).T, a, 1.0, NONE).T
    first, second = (1 - beta1) * of_b, (1 - beta2) * of_b.square()
    alternate(toy, rule, 1)
    torch.testing.assert_close(toy.factors.b.detach(), moved(b, first, second, 1))

    (a_old, b), g = factors(toy), full_gradient(toy)
    of_a = closed_form(b.T @ g, b.T, 1.0, NONE)
    alternate(toy, rule, 1)
    wanted = moved(a_old, (1 - beta1) * of_a, (1 - beta2) * of_a.square(), 1)
    torch.testing.assert_close(toy.factors.a.detach(), wanted)

    (a, b), g = factors(toy), full_gradient(toy)
    of_b = closed_form((g @ a.T).T, a, 1.0, NONE).T
    carried = first @ a_old @ torch.linalg.pinv(a)
    first, second = beta1 * carried + (1 - beta1) * of_b, beta2 * second + (1 - beta2) * of_b.square()
    alternate(toy, rule, 1)
    torch.testing.assert_close(toy.factors.b.detach(), moved(b, first, second, 2))


def test_the_factor_that_waits_keeps_every_bit():
    check_the_factor_that_waits({"step", "first", "partner", "second"}, second_moment=True)


def test_the_path_of_the_weight_depends_on_the_scale():
    assert relative(scaled_run(4.0, second_moment=True), scaled_run(1.0, second_moment=True)) > 1e-2


def test_b_zero_and_a_first_leave_a_but_for_its_decay():
    toy = bent_product(0)
    toy.put(toy.factors.a, torch.zeros_like(toy.factors.b))
    a, _ = factors(toy)
    alternate(toy, rule_of(toy, decay=0.5, first="A", ridge=1e-6, second_moment=True), 1)
    torch.testing.assert_close(toy.factors.a.detach(), a * (1 - 0.1 * 0.5))
    assert not toy.factors.b.any()


def test_a_run_keeps_its_second_moments_and_leaves_the_head_to_the_runs_rule(digits):
    plus = snapshots(digits("altlora-plus").path)[-1]
    assert any(name.endswith("live.B/second") for name in plus)
    assert any(name.startswith("optimizer/head.") and name.endswith("exp_avg") for name in plus)  # AdamW has the rest
