"""CoDyRA: the threshold and its course by hand, what survives, and what is left of a task in the weight."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from digit_runs import snapshots, stored
from pools import randn
from torch import Tensor, nn

from rankwise.adapters import Change, Pair, attach, banks_of, grow, pick_sites
from rankwise.adapters.ranks import THRESHOLDS
from rankwise.api import adapt, branch_of
from rankwise.claims.toys.stand import Stand, stand
from rankwise.config import AdapterSettings, parse_record
from rankwise.errors import UsageError
from rankwise.papers.codyra import METHOD, Codyra, CodyraSettings, Importance
from rankwise.strategies import Host, Setting

WIDTH, OUT, RANK = 24, 20, 16


def started(steps: int = 500, tasks: int = 2, lr: float = 5e-4, **gate: Any) -> Stand:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(WIDTH, OUT), nn.Tanh(), nn.Linear(OUT, 10))
    attach(model, pick_sites(model), branch_of(METHOD, AdapterSettings(gate=gate)), {"method": "codyra"})
    return stand(model, tasks, steps=steps, lr=lr, betas=[0.9, 0.9999])


def part(**settings: Any) -> Codyra:
    return Codyra(parse_record(CodyraSettings, settings, "test"), 0)


def block(host: Stand) -> list[Change]:
    return [Change("append", host.task.name, RANK)]


def bases(host: Stand) -> list[Tensor]:
    """Return copies of the base's two weights."""
    return [host.model.get_parameter(f"{i}.base.weight").detach().clone() for i in (0, 2)]


def loss(host: Stand, step: int) -> Tensor:
    return (host.model(randn(8, WIDTH, key=f"x{step}")) - randn(8, 10, key=f"y{step}")).square().mean()


def none(host: Stand) -> Tensor:
    """Return a loss of zero whose gradient is zero in everything that learns."""
    return torch.stack([(p * 0).sum() for p in host.live().values()]).sum()


def run(host: Stand, dynamics: Codyra, *, real: bool = True) -> None:
    for step in range(host.steps(host.task)):
        host.step(dynamics, loss(host, step) if real else none(host))


# its course


def test_the_course_is_that_of_the_released_code():
    dynamics, index, kappas = part(), 0, torch.linspace(0, 5e-3, 50)
    for i in range(500):
        if i >= 250 and i % 5 == 0:
            index = min(index + 1, 49)
        applied = float(kappas[index]) if i > 250 else 0.0
        assert dynamics.kappa(i, 500) == pytest.approx(applied, abs=1e-9), i


def test_the_thresholds_add_up_to_what_the_notes_say():
    applied = [part().kappa(i, 500) for i in range(500)]
    assert all(kappa == 0 for kappa in applied[:250]) and applied[-1] == pytest.approx(5e-3)
    assert sum(applied) == pytest.approx(0.650, abs=1e-3) and sum(kappa > 0 for kappa in applied) == 249


@pytest.mark.parametrize(
    ("settings", "first"), [({"dense": 0.0}, 1), ({"dense": 0.9}, 451), ({"course": "constant"}, 251)]
)
def test_its_settings_move_the_course(settings, first):
    applied = [part(**settings).kappa(i, 500) for i in range(500)]
    assert next(i for i, kappa in enumerate(applied) if kappa) == first
    assert applied[-1] == pytest.approx(5e-3)


def test_a_short_task_is_pruned_as_far_as_its_steps_reach():
    applied = [part().kappa(i, 10) for i in range(10)]
    assert applied == sorted(applied) and 0 < applied[-1] < 5e-3


# what survives


def test_where_the_loss_says_nothing_the_start_decides_who_survives():
    host, dynamics = started(), part()
    host.begin(0, dynamics, block(host))
    at_start = {n: bank.live["w"].detach().clone() for n, (_, bank) in banks_of(host.model).items()}
    run(host, dynamics, real=False)
    total = sum(dynamics.kappa(i, 500) for i in range(500))
    for name, (_, bank) in banks_of(host.model).items():
        assert torch.equal(bank.live["w"] != 0, at_start[name].abs() > total)


def test_half_of_the_ranks_are_expected_to_survive_by_their_start_alone():
    starts = torch.cat([Importance().start(None, 16, torch.Generator().manual_seed(i))["w"] for i in range(500)])  # pyright: ignore[reportArgumentType]
    assert 16 * float((starts.abs() > 0.650).float().mean()) == pytest.approx(8.2, abs=0.3)


@pytest.mark.parametrize("name", THRESHOLDS)
def test_importances_become_exactly_zero_and_never_come_back(name):
    host, dynamics = started(), part(threshold=name)
    host.begin(0, dynamics, block(host))
    dead = {n: torch.zeros(RANK, dtype=torch.bool) for n in banks_of(host.model)}
    for step in range(500):
        host.step(dynamics, loss(host, step), 0.5)
        for n, (_, bank) in banks_of(host.model).items():
            zero = bank.live["w"] == 0
            assert bool((zero | ~dead[n]).all())
            dead[n] = zero
    shares = [float(zero.float().mean()) for zero in dead.values()]
    assert all(0.05 < share < 0.95 for share in shares)


def test_with_no_threshold_nothing_is_pruned():
    host, dynamics = started(steps=40), part(kappa_max=0.0)
    host.learn(0, dynamics, lambda step: loss(host, step), after=block(host))
    assert dynamics.kept.tolist() == [RANK, RANK]


def test_a_rank_of_no_importance_gives_its_factors_no_gradient_but_gets_one():
    host = started()
    host.begin(0, part(), block(host))
    (_, bank), *_ = banks_of(host.model).values()
    with torch.no_grad():
        bank.live["B"].normal_()
        bank.live["w"][3] = 0.0
    loss(host, 0).backward()
    a, b, w = (bank.live[name].grad for name in ("A", "B", "w"))
    assert a[3].norm() == 0 and b[:, 3].norm() == 0 and w[3].abs() > 0
    assert a[4].norm() > 0 and b[:, 4].norm() > 0


# the task's edges


def test_every_task_starts_where_the_base_is_to_the_bit():
    host, dynamics, x = started(steps=20), part(kappa_max=0.05), randn(7, WIDTH, key="x")
    for task in range(2):
        before = host.model(x)
        host.begin(task, dynamics, [Change("append", host.tasks[task].name, RANK)])
        assert torch.equal(host.model(x), before)
        run(host, dynamics)
        trained = host.model(x)
        host.end(dynamics)
        torch.testing.assert_close(host.model(x), trained, rtol=0, atol=1e-5)
        assert not torch.allclose(before, trained, atol=1e-3)


def test_the_base_moves_by_the_folded_update_alone_of_no_more_ranks_than_survive():
    host, dynamics = started(steps=100, lr=5e-3), part(kappa_max=0.05)
    before = bases(host)
    host.begin(0, dynamics, block(host))
    run(host, dynamics)
    branch = Pair(Importance())
    updates = [branch.dense(bank.view(), site, lambda: before[0]) for site, bank in banks_of(host.model).values()]
    host.end(dynamics)
    for now, old, update, kept in zip(bases(host), before, updates, dynamics.kept, strict=True):
        moved = now - old
        torch.testing.assert_close(moved, update, rtol=0, atol=1e-6)
        assert torch.linalg.matrix_rank(moved, atol=1e-5) <= kept < RANK
    assert all(bank.size == 0 for _, bank in banks_of(host.model).values())


def test_a_site_may_lose_all_of_its_ranks():
    host, dynamics = started(steps=20), part(kappa_max=5.0)
    plain = host.model.get_parameter("0.base.weight").detach().clone()
    host.learn(0, dynamics, lambda step: loss(host, step), after=block(host))
    assert dynamics.kept.tolist() == [0, 0] and torch.equal(host.model.get_parameter("0.base.weight"), plain)


def test_importances_may_start_alike():
    host = started(start_at="one")
    grow(host.model, block(host), 0)
    assert all(torch.equal(bank.live["w"], torch.ones(RANK)) for _, bank in banks_of(host.model).values())


# runs and refusals


def test_an_adapter_without_fresh_blocks_or_importances_is_refused():
    assert "growth = 'append'" in str(part().misfit(Setting(growth="keep")))
    model = adapt(nn.Sequential(nn.Linear(WIDTH, OUT)), "lora", rank=4)
    with pytest.raises(UsageError, match="'codyra'"):
        part().fits(cast(Host, stand(model, 1)))


def test_a_run_keeps_no_blocks_and_remembers_how_many_ranks_each_task_kept(digits):
    run = digits("codyra", adapter={"dynamics": {"kappa_max": 0.5}}, train={"steps": 12})
    assert not any("live." in name for name in stored(run.path, "adapter.safetensors"))
    kept = snapshots(run.path)[-1]["strategies/codyra/kept"]
    sites = len(banks_of(run.model))
    assert kept.shape == (3 * sites,) and len(set(kept.tolist())) > 1 and int(kept.min()) < 16
