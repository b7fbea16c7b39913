"""AltLoRA: every move is a projection of the full gradient, whatever the factors are."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from digit_runs import snapshots
from products import (
    IN,
    NONE,
    OUT,
    RANK,
    SCALE,
    check_the_factor_that_waits,
    draw,
    factors,
    full_gradient,
    onto_columns,
    onto_rows,
    rule_of,
    scaled_run,
)
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from rankwise.adapters import banks_of
from rankwise.adapters.alternating import Alternation, PairedRule, realigned
from rankwise.adapters.paired import Factors, closed_form
from rankwise.claims.altlora import CLAIMS, alternate, bent_product, relative
from rankwise.config import parse_record
from rankwise.errors import UsageError


@pytest.mark.parametrize(
    ("claim", "seed"),
    [(CLAIMS[0], 0), *((CLAIMS[1], seed) for seed in range(3))],
    ids=lambda value: value.name if value in CLAIMS else str(value),
)
def test_a_claim_holds_for_a_seed(claim, seed):
    values = claim.measure(seed)
    assert all(threshold.meets(values[threshold.value]) for threshold in claim.thresholds), values


def test_one_step_moves_the_product_by_a_projection_of_the_full_gradient():
    toy = bent_product(0)
    rule = rule_of(toy, beta1=0.0)
    for moved in ("B", "A"):
        (a, b), before, gradient = factors(toy), toy.weight.detach(), full_gradient(toy)
        alternate(toy, rule, 1)
        wanted = {"B": gradient @ onto_rows(a), "A": onto_columns(b) @ gradient}[moved]
        torch.testing.assert_close(toy.weight.detach() - before, -0.1 * wanted, rtol=1e-6, atol=1e-9)


def test_the_closed_form_is_a_least_squares_solution():
    a, b, gradient = draw(RANK, IN), draw(OUT, RANK), draw(OUT, IN)
    down = closed_form(SCALE * b.T @ gradient, b.T, SCALE, NONE)
    assert (b.T @ (SCALE * b @ down - gradient)).abs().max() < 1e-12
    up = closed_form((SCALE * gradient @ a.T).T, a, SCALE, NONE).T
    assert ((SCALE * up @ a - gradient) @ a.T).abs().max() < 1e-12
    assert (b.T @ (SCALE * b @ (down + 0.1) - gradient)).abs().max() > 0.1


def test_the_path_of_the_weight_does_not_depend_on_the_scale():
    assert relative(scaled_run(4.0, ridge=0.0), scaled_run(1.0, ridge=0.0)) < 1e-9


def test_realigned_momentum_is_the_old_one_projected_on_the_new_basis():
    old, new, momentum = draw(RANK, IN), draw(RANK, IN).flip(0) + 0.3, draw(RANK, OUT)
    moved = realigned(momentum, old, new, NONE)  # ranks first: rows A for the momentum of B, transposed
    torch.testing.assert_close(moved.T @ new, momentum.T @ old @ onto_rows(new))
    b_old, b_new, of_a = draw(OUT, RANK), draw(OUT, RANK).flip(0) + 0.3, draw(RANK, IN)
    torch.testing.assert_close(b_new @ realigned(of_a, b_old.T, b_new.T, NONE), onto_columns(b_new) @ b_old @ of_a)


def test_realignment_loses_nothing_where_the_row_spaces_are_one():
    old, momentum = draw(RANK, IN), draw(RANK, OUT)
    torch.testing.assert_close(realigned(momentum, old, old, NONE), momentum)
    new = draw(RANK, RANK) @ old
    moved = realigned(momentum, old, new, NONE)
    assert relative(moved, momentum) > 0.1
    torch.testing.assert_close(moved.T @ new, momentum.T @ old)


def test_the_factor_that_waits_keeps_every_bit():
    check_the_factor_that_waits({"step", "first", "partner"})


@pytest.mark.parametrize("relative_ridge", [False, True])
def test_a_first_with_b_zero_leaves_a_but_for_its_decay(relative_ridge):
    toy = bent_product(0)
    toy.put(toy.factors.a, torch.zeros_like(toy.factors.b))
    a, _ = factors(toy)
    alternate(toy, rule_of(toy, decay=0.5, first="A", ridge=1e-6, relative_ridge=relative_ridge), 1)
    torch.testing.assert_close(toy.factors.a.detach(), a * (1 - 0.1 * 0.5))
    assert not toy.factors.b.any()


@pytest.mark.parametrize(("first", "period", "order"), [("B", 1, "BABABA"), ("A", 1, "ABABAB"), ("B", 3, "BBBAAA")])
def test_turns_come_in_the_order_and_period_of_the_settings(first, period, order):
    toy = bent_product(0)
    rule, seen = rule_of(toy, ridge=1e-6, first=first, period=period), ""
    for _ in order:
        a, b = factors(toy)
        alternate(toy, rule, 1)
        assert torch.equal(toy.factors.a, a) != torch.equal(toy.factors.b, b)
        seen += "B" if torch.equal(toy.factors.a, a) else "A"
    assert seen == order


def test_both_at_once_move_by_the_two_projections_and_their_cross_term():
    toy = bent_product(0)
    (a, b), before, g = factors(toy), toy.weight.detach(), full_gradient(toy)
    alternate(toy, rule_of(toy, beta1=0.0, first="both"), 1)
    cross = g @ torch.linalg.pinv(a) @ torch.linalg.pinv(b) @ g
    wanted = -0.1 * (onto_columns(b) @ g + g @ onto_rows(a)) + 0.01 * cross
    torch.testing.assert_close(toy.weight.detach() - before, wanted)


def test_both_at_once_with_momentum_do_the_same_to_the_transposed_problem():
    """Each momentum is realigned with the partner of the backward, not with the one that has just moved."""
    target, ends = draw(OUT, IN), []
    for transposed in (False, True):
        t = target.T if transposed else target
        a, b = (nn.Parameter(draw(*size)) for size in ((RANK, IN), (OUT, RANK)))
        a, b = (nn.Parameter(b.detach().T.clone()), nn.Parameter(a.detach().T.clone())) if transposed else (a, b)
        rule = PairedRule([Factors(a, b, SCALE)], Alternation(ridge=0.0, beta1=0.9, first="both"), 0.05)
        for _ in range(20):
            gradient = SCALE * (b @ a).detach() - t
            a.grad, b.grad = SCALE * b.detach().T @ gradient, SCALE * gradient @ a.detach().T
            rule.precondition()
            rule.step()
        ends.append((b @ a).detach().T if transposed else (b @ a).detach())
    torch.testing.assert_close(*ends, rtol=1e-9, atol=1e-9)


def test_momentum_is_realigned_without_a_matrix_as_large_as_the_weight():
    class Watch(TorchDispatchMode):
        largest = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            found = func(*args, **(kwargs or {}))
            self.largest = max(self.largest, found.numel()) if isinstance(found, torch.Tensor) else self.largest
            return found

    momentum, before, partner = draw(RANK, 40), draw(RANK, 50), draw(RANK, 50)
    with Watch() as watch:
        found = realigned(momentum, before, partner, NONE)
    assert 0 < watch.largest <= RANK * 50
    wanted = torch.linalg.pinv(partner.T) @ (before.T @ momentum)
    torch.testing.assert_close(found, wanted)


def test_the_moments_are_corrected_for_their_start_by_each_factors_own_steps():
    ends = []
    for correct in (True, False):
        toy = bent_product(0)
        before = toy.weight.detach()
        alternate(toy, rule_of(toy, bias_correction=correct), 1)
        ends.append(toy.weight.detach() - before)
    torch.testing.assert_close(0.1 * ends[0], ends[1])


def test_a_half_precision_factor_is_solved_for_in_float32():
    toy = bent_product(0)
    toy.model.bfloat16()
    (_, bank), *_ = banks_of(toy.model).values()
    pair = type(toy.factors)(bank.live["A"], bank.live["B"], 1.0)
    rule = PairedRule([pair], Alternation(), 0.1)
    toy.model(torch.randn(4, IN).bfloat16()).square().sum().backward()
    rule.precondition()
    rule.step()
    assert pair.b.dtype == torch.bfloat16 and rule.state[pair.b]["first"].dtype == torch.float32


def test_a_run_alternates_and_keeps_what_it_remembers_in_its_snapshots(digits):
    ends = snapshots(digits("altlora").path)
    for end in ends:
        steps = {
            name: int(t) for name, t in end.items() if name.startswith("optimizer/base.") and name.endswith("/step")
        }
        counts = {name[-6:-5]: n for name, n in steps.items()}
        assert counts == {"B": 3, "A": 2}, steps  # five steps a task, B first
    for first, second in pairwise(ends):
        partner = next(name for name in first if name.endswith("live.B/partner"))
        assert not torch.equal(first[partner], second[partner])
    assert not any(name.endswith("/second") for name in ends[-1])


def test_clipping_bounds_the_preconditioned_gradient(digits, monkeypatch):
    """Were it clipped before, the closed form's 1/s^2 would blow it up again."""
    norms: list[float] = []
    step = PairedRule.step

    def watched(rule: PairedRule) -> None:
        norms.append(
            float(torch.cat([p.grad.flatten() for p in rule.param_groups[0]["params"] if p.grad is not None]).norm())
        )
        step(rule)

    monkeypatch.setattr(PairedRule, "step", watched)
    digits("altlora", train={"clip": 1e-3}, adapter={"scale": 0.01})
    assert norms and max(norms) <= 1e-3 * (1 + 1e-5) and max(norms) > 5e-4


def test_the_rule_takes_the_schedules_learning_rate(digits, monkeypatch):
    rates: list[float] = []
    step = PairedRule.step
    monkeypatch.setattr(PairedRule, "step", lambda rule: (rates.append(rule.param_groups[0]["lr"]), step(rule))[1])
    digits("altlora", train={"lr": 0.25, "schedule": "linear", "snapshot_seconds": 29.0}, stream={"first_tasks": 2})
    assert rates == pytest.approx(2 * [0.25, 0.2, 0.15, 0.1, 0.05])


def test_settings_outside_their_range_are_refused():
    with pytest.raises(UsageError, match="period = 0"):
        parse_record(Alternation, {"period": 0}, "adapter.dynamics")
