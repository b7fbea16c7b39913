"""AltLoRA, AltLoRA+ and their relatives: every move is a projection of the full gradient, whatever the factors are."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from digit_runs import snapshots
from torch import Tensor

import rankwise
from rankwise import papers
from rankwise.adapters import Change, Pair, attach, banks_of, grow, pick_sites
from rankwise.adapters.paired import (
    Alternation,
    PairedRule,
    Ridge,
    best_together,
    closed_form,
    freedom,
    realigned,
)
from rankwise.claims.altlora import CLAIMS, Product, alternate, bent_product, relative
from rankwise.errors import ConflictError
from rankwise.papers.lora_pro import LoraPro
from rankwise.papers.lora_pro import Settings as ProSettings
from rankwise.papers.riemannian import Riemannian
from rankwise.papers.riemannian import Settings as RiemannianSettings
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


def test_the_path_of_the_weight_does_not_depend_on_the_scale():
    assert relative(scaled_run(4.0, ridge=0.0), scaled_run(1.0, ridge=0.0)) < 1e-9
    assert relative(scaled_run(4.0, second_moment=True), scaled_run(1.0, second_moment=True)) > 1e-2


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


@pytest.mark.parametrize("settings", [{}, {"second_moment": True}], ids=["altlora", "altlora-plus"])
def test_the_factor_that_waits_keeps_every_bit(settings):
    toy = bent_product(0)
    rule = rule_of(toy, ridge=1e-6, decay=0.1, **settings)
    alternate(toy, rule, 4)
    for moving, waiting in ((toy.factors.b, toy.factors.a), (toy.factors.a, toy.factors.b)):
        before = waiting.detach().clone(), {k: v.clone() for k, v in rule.state[waiting].items()}
        held = moving.detach().clone()
        alternate(toy, rule, 1)
        assert waiting.grad is None and torch.equal(waiting, before[0]) and not torch.equal(moving, held)
        assert all(torch.equal(rule.state[waiting][k], v) for k, v in before[1].items())
        assert set(before[1]) == {"step", "first", "partner"} | ({"second"} if settings else set())


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


@pytest.fixture
def gradients() -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    a, b, g = draw(RANK, IN), draw(OUT, RANK), draw(OUT, IN)
    return a, b, SCALE * b.T @ g, SCALE * g @ a.T, g


def test_lora_pros_equivalent_gradient_does_not_depend_on_the_free_matrix(gradients):
    a, b, down, up, g = gradients
    columns = onto_columns(b)
    wanted = columns @ g + (torch.eye(OUT).double() - columns) @ g @ onto_rows(a)
    choices = [freedom(a, b, down, up, SCALE, NONE, kind) for kind in ("sylvester", "zero", "symmetric")]
    assert not torch.allclose(choices[0], choices[2])
    for x in (*choices, draw(RANK, RANK)):
        new_down, new_up = best_together(a, b, down, up, SCALE, NONE, x)
        torch.testing.assert_close(SCALE * (b @ new_down + new_up @ a), wanted, rtol=1e-6, atol=1e-9)
        assert (down * new_down).sum() + (up * new_up).sum() >= 0  # to first order the loss falls


def test_lora_pros_free_matrix_solves_its_equation_and_keeps_the_gradients_nearest(gradients):
    a, b, down, up, _ = gradients
    x = freedom(a, b, down, up, SCALE, NONE, "sylvester")
    right = -torch.linalg.solve(b.T @ b, down @ a.T) / SCALE**2
    assert (b.T @ b @ x + x @ a @ a.T - right).abs().max() < 1e-9

    def distance(x: Tensor) -> float:
        new_down, new_up = best_together(a, b, down, up, SCALE, NONE, x)
        return float((new_down - down).square().sum() + (new_up - up).square().sum())

    assert all(distance(x) < distance(x + 1e-2 * draw(RANK, RANK).roll(i)) for i in range(4))


def test_lora_pro_starts_at_b_zero_without_harm():
    a, g = draw(RANK, IN), draw(OUT, IN)
    b = torch.zeros(OUT, RANK).double()
    down, up = LoraPro(ProSettings(), 0).joint(a, b, SCALE * b.T @ g, SCALE * g @ a.T, SCALE)
    assert not down.any()
    torch.testing.assert_close(SCALE * up @ a, g @ onto_rows(a), rtol=1e-6, atol=1e-9)


def test_riemannian_gradients_move_the_product_by_both_projections(gradients):
    a, b, down, up, g = gradients
    part = Riemannian(RiemannianSettings(ridge=0.0, inverse_scale=True), 0)
    new_down, new_up = part.joint(a, b, down, up, SCALE)
    torch.testing.assert_close(SCALE * b @ new_down, onto_columns(b) @ g)
    torch.testing.assert_close(SCALE * new_up @ a, g @ onto_rows(a))
    raw, _ = Riemannian(RiemannianSettings(ridge=0.0), 0).joint(a, b, down, up, SCALE)
    torch.testing.assert_close(raw, new_down * SCALE**2)


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
    plus = snapshots(digits("altlora-plus").path)[-1]
    assert any(name.endswith("live.B/second") for name in plus)
    assert any(name.startswith("optimizer/head.") and name.endswith("exp_avg") for name in plus)  # AdamW has the rest


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


DYNAMICS = ("altlora", "altlora-plus", "riemannian", "lora-pro")


@pytest.mark.parametrize("kind", DYNAMICS)
def test_other_methods_take_the_rule_from_a_config(digits, kind):
    run = digits("lora-append", adapter={"dynamics": {"kind": kind}}, stream={"first_tasks": 2})
    for _, bank in banks_of(run.model).values():
        assert bank.tensor("B").isfinite().all() and bank.tensor("B").norm() > 0


@pytest.mark.parametrize("kind", DYNAMICS)
def test_it_refuses_what_has_no_pair_of_factors(kind, tmp_path):
    def started(**tables: Any) -> Callable[[], object]:
        config = {"model": {"name": "embedded:vit"}, "stream": {"name": "digits"}, **tables}
        return lambda: rankwise.run(config, out=tmp_path / "run")

    fixed = started(method="lora", adapter={"dynamics": {"kind": kind}, "form": {"fixed": ["A"]}})
    with pytest.raises(ConflictError, match=f"{kind!r} needs two factors.*fixed"):
        fixed()
    with pytest.raises(ConflictError, match="no adapter|has none|adapter"):
        started(method="finetune", adapter={"dynamics": {"kind": kind}})()


def test_every_site_has_its_own_scale_and_pairs_are_found_by_site():
    """Three factors lie between A and B of one site in the order of parameters, were pairs taken by neighbourhood."""
    from rankwise.strategies.paired import pairs_of

    class Host:
        model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Linear(6, 4))

    attach(Host.model, pick_sites(Host.model), Pair(scale=2.0), {"seed": 0})
    grow(Host.model, [Change("append", "1", 2)], 0)
    found = pairs_of(Host(), "x")  # pyright: ignore[reportArgumentType]
    assert [(p.a.shape, p.b.shape, p.scale) for p in found] == [((2, 4), (6, 2), 2.0), ((2, 6), (4, 2), 2.0)]
    for pair, (_, bank) in zip(found, banks_of(Host.model).values(), strict=True):
        assert pair.a is bank.live["A"] and pair.b is bank.live["B"]


def test_settings_outside_their_range_are_refused():
    with pytest.raises(ValueError, match="period"):
        Alternation(period=0)
    plus = papers.method("altlora-plus").dynamics
    assert plus is not None and plus.Settings().second_moment
