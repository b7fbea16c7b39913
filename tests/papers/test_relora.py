"""ReLoRA: folding and starting anew changes no answer, adds rank, cuts the moments and lifts the rate again."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from digit_runs import stored
from pools import randn
from torch import Tensor, nn

from rankwise.adapters import banks_of
from rankwise.api import adapt
from rankwise.claims.toys.stand import Stand, stand
from rankwise.config import parse_record
from rankwise.learning.rules import keep_moments
from rankwise.papers.relora import Relora, ReloraSettings
from rankwise.strategies import Host, Setting

WIDTH, OUT, RANK, STEPS = 20, 14, 2, 30


def started(steps: int = STEPS) -> Stand:
    torch.manual_seed(5)
    model = adapt(nn.Sequential(nn.Linear(WIDTH, OUT)), "relora", rank=RANK)
    return stand(model, 2, steps=steps, lr=1e-2, schedule="constant")


def part(**settings: Any) -> Relora:
    return Relora(parse_record(ReloraSettings, settings, "test"), 0)


def loss(host: Stand, step: int) -> Tensor:
    return (host.model(randn(8, WIDTH, key=f"x{step}")) - randn(8, OUT, key=f"y{step}")).square().mean()


def bank_of(host: Stand) -> Any:
    ((_, bank),) = banks_of(host.model).values()
    return bank


def run(host: Stand, dynamics: Relora, steps: int = STEPS) -> None:
    host.begin(0, dynamics)
    for step in range(steps):
        host.step(dynamics, loss(host, step))


def test_a_restart_changes_no_answer_and_starts_a_fresh_block(monkeypatch):
    host, dynamics, x = started(), part(), randn(9, WIDTH, key="t")
    run(host, dynamics, 9)
    first, before = bank_of(host).live["A"].detach().clone(), []
    monkeypatch.setattr(dynamics, "settle", lambda *_: before.append(host.model(x).detach()))
    host.step(dynamics, loss(host, 9))
    torch.testing.assert_close(host.model(x), before[-1], rtol=0, atol=1e-5)
    bank = bank_of(host)
    assert bank.labels == ("restart 1",) and bank.size == RANK and not bank.live["B"].any()
    assert not torch.allclose(bank.live["A"], first, atol=1e-3)


def test_the_update_outgrows_the_rank_of_a_block():
    host, start = started(), started().model.get_parameter("0.base.weight").detach().clone()
    run(host, part())
    bank = bank_of(host)
    whole = (
        host.model.get_parameter("0.base.weight").detach() - start + bank.live["B"].detach() @ bank.live["A"].detach()
    )
    assert torch.linalg.matrix_rank(whole, rtol=1e-3) == 3 * RANK


@pytest.mark.parametrize(("cycles", "restarts"), [(1, 0), (2, 1), (3, 2), (40, 29)])
def test_a_task_has_so_many_cycles(cycles, restarts):
    host, dynamics = started(), part(cycles=cycles)
    run(host, dynamics)
    assert dynamics.restarts == restarts


def test_the_rate_rises_again_after_each_restart_but_not_at_first():
    host, dynamics, rates = started(), part(cycles=3, warmup=0.5), []
    host.begin(0, dynamics)
    for step in range(STEPS):
        host.step(dynamics, loss(host, step))
        rates.append(dynamics.rule.param_groups[0]["lr"] / 1e-2 if (step + 1) % 10 else 0.0)
    rising = [1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1.0, 1.0, 1.0, 1.0, 0.0]
    assert rates == pytest.approx([1.0] * 9 + [0.0] + rising[:9] + [0.0] + rising)


def test_the_rate_lies_on_the_schedule_times_the_warm_up():
    host, dynamics = started(), part(cycles=3, warmup=0.5)
    run(host, dynamics, 12)
    host.step(dynamics, loss(host, 12), 0.25)
    assert dynamics.rule.param_groups[0]["lr"] == pytest.approx(1e-2 * 0.25 * 3 / 6)


def moments(host: Stand, dynamics: Relora) -> dict[str, Tensor]:
    bank = bank_of(host)
    return {name: dynamics.rule.state[bank.live[name]].get("exp_avg", torch.zeros(1)) for name in ("A", "B")}


@pytest.mark.parametrize(("kind", "share"), [("reset", 0.0), ("random", 0.25), ("magnitude", 0.25)])
def test_the_moments_are_cut_at_a_restart_as_the_settings_say(kind, share):
    host, dynamics = started(), part(moments=kind, pruned=0.75)
    run(host, dynamics, 9)
    held = dynamics._cut(cast(Host, host), 9) if kind == "magnitude" else {}
    host.step(dynamics, loss(host, 9))
    found = moments(host, dynamics)
    left = sum(int(m.count_nonzero()) for m in found.values()) / (RANK * (WIDTH + OUT))
    assert left == pytest.approx(share, abs=0.15 if kind == "random" else 0.05)
    assert all(set(each) == {"step", "exp_avg", "exp_avg_sq"} for each in held.values())


@pytest.mark.parametrize("kind", ["random", "magnitude"])
def test_no_step_after_a_restart_is_thrown_far_away(kind):
    host, dynamics = started(), part(moments=kind, pruned=0.9)
    run(host, dynamics, 14)
    bank = bank_of(host)
    assert bank.live["A"].abs().max() < 1 and bank.live["B"].abs().max() < 1


def test_moments_that_are_kept_are_those_of_the_old_block(monkeypatch):
    host, dynamics = started(), part(moments="magnitude", pruned=0.0)
    run(host, dynamics, 9)
    kept: list[dict[str, Tensor]] = []

    def copy(*_: object) -> None:
        kept.append({n: m.clone() for n, m in moments(host, dynamics).items()})

    monkeypatch.setattr(dynamics, "settle", copy)
    host.step(dynamics, loss(host, 9))
    after = moments(host, dynamics)
    assert all(torch.equal(after[name], kept[-1][name]) and after[name].any() for name in after)


def test_a_head_keeps_its_moments_through_a_restart():
    stays, goes = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    old = torch.optim.AdamW([stays, goes])
    (stays.sum() + goes.sum()).backward()
    old.step()
    new = torch.optim.AdamW([stays, nn.Parameter(torch.ones(2))])
    keep_moments([new], [old])
    assert new.state[stays]["exp_avg"].any() and len(new.state) == 1


def test_an_oracle_is_refused():
    assert "oracle" in str(part().misfit(Setting(oracle=True))) and part().misfit(Setting()) is None


def test_a_run_leaves_one_block_beside_an_edited_base(digits):
    run = digits("relora", adapter={"dynamics": {"cycles": 2}})
    assert all(bank.labels == ("restart 3",) for _, bank in banks_of(run.model).values())
    names = stored(run.path, "adapter.safetensors")
    assert any(name.startswith("//edits/") for name in names)
