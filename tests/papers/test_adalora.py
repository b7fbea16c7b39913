"""AdaLoRA: the budget and its course, scores by hand, and strengths that are zero where the budget does not reach."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pools import randn
from torch import Tensor, nn

from rankwise.adapters import banks_of
from rankwise.adapters.ranks import rank_weights
from rankwise.adapters.svd import skewness
from rankwise.api import adapt, merge
from rankwise.claims.toys.stand import Stand, stand
from rankwise.config import parse_record
from rankwise.errors import UsageError
from rankwise.papers.adalora import Adalora, AdaloraSettings
from rankwise.strategies import courses

WIDTH, OUT, RANK, STEPS = 20, 14, 6, 40
RANKS = 2 * RANK


def started(steps: int = STEPS, tasks: int = 2) -> Stand:
    torch.manual_seed(5)
    model = adapt(nn.Sequential(nn.Linear(WIDTH, OUT), nn.Tanh(), nn.Linear(OUT, 10)), "adalora", rank=RANK)
    return stand(model, tasks, steps=steps, lr=1e-2, schedule="constant")


def part(**settings: Any) -> Adalora:
    return Adalora(parse_record(AdaloraSettings, {"target": 0.5, **settings}, "test"), 0)


def loss(host: Stand, step: int) -> Tensor:
    return (host.model(randn(8, WIDTH, key=f"x{step}")) - randn(8, 10, key=f"y{step}")).square().mean()


def acting(host: Stand) -> int:
    return sum(int(w.count_nonzero()) for w in rank_weights(host.model).values())


# the budget


def budget(dynamics: Adalora, t: int, total: int, ranks: int) -> int:
    settings = dynamics.settings
    return dynamics.budget(t, courses.stretch(total, settings.initial, settings.final), ranks)


def test_the_budget_falls_from_all_ranks_to_the_target_as_a_cube():
    dynamics = part(initial=0.1, final=0.3)
    course = [budget(dynamics, t, 100, 1000) for t in range(1, 101)]
    assert course[:10] == [1000] * 10 and course[69:] == [500] * 31
    assert all(a >= b for a, b in zip(course, course[1:], strict=False))
    assert course[39] == round(500 + 500 * 0.5**3)


def test_in_every_step_that_allocates_as_many_ranks_act_as_the_budget_says():
    host, dynamics = started(), part()
    host.begin(0, dynamics)
    for step in range(STEPS):
        host.step(dynamics, loss(host, step))
        assert acting(host) == budget(dynamics, step + 1, STEPS, RANKS), step
    assert acting(host) == RANKS // 2


def test_between_two_choices_all_ranks_may_come_back():
    host, dynamics = started(), part(every=6, initial=0.1, final=0.3)
    host.begin(0, dynamics)
    found = []
    for step in range(STEPS):
        host.step(dynamics, loss(host, step))
        found.append(acting(host))
    chosen = [t for t in range(5, 29) if (t - 4) % 6 == 0]
    assert chosen == [10, 16, 22, 28]
    assert all(found[t - 1] == budget(dynamics, t, STEPS, RANKS) for t in chosen)
    assert all(found[t - 1] == RANKS for t in range(5, 28) if t not in chosen)


def test_in_the_last_steps_the_choice_stays_as_it_is():
    host, dynamics = started(), part()
    host.begin(0, dynamics)
    masks = []
    for step in range(STEPS):
        host.step(dynamics, loss(host, step))
        masks.append(torch.cat([w.detach() == 0 for w in rank_weights(host.model).values()]))
    assert all(torch.equal(mask, masks[-1]) for mask in masks[28:]) and not torch.equal(masks[10], masks[-1])


def test_pruned_ranks_keep_their_directions():
    host, dynamics = started(), part()
    host.learn(0, dynamics, lambda step: loss(host, step))
    for _, bank in banks_of(host.model).values():
        dead = bank.live["w"] == 0
        assert bank.live["A"][dead].norm(dim=1).min() > 0 if dead.any() else True


def test_the_next_task_has_all_ranks_again():
    host, dynamics = started(), part()
    host.learn(0, dynamics, lambda step: loss(host, step))
    host.begin(1, dynamics)
    host.step(dynamics, loss(host, 0))
    assert acting(host) == RANKS


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_short_task_ends_with_the_target(steps):
    host, dynamics = started(steps), part()
    host.learn(0, dynamics, lambda step: loss(host, step))
    assert acting(host) == RANKS // 2


# the scores


def test_a_score_is_the_running_mean_of_importance_times_that_of_its_spread():
    host, dynamics = started(), part(beta1=0.8, beta2=0.6, gamma=0.0)
    (name, (_, bank)), *_ = banks_of(host.model).items()
    host.begin(0, dynamics)
    mean = {n: torch.zeros_like(bank.live[n]) for n in ("A", "B", "w")}
    spread = {n: torch.zeros_like(bank.live[n]) for n in ("A", "B", "w")}
    for step in range(3):
        host.step(dynamics, loss(host, step))
        for n in mean:
            now = (bank.live[n] * bank.live[n].grad).abs().detach()
            mean[n] = 0.8 * mean[n] + 0.2 * now
            spread[n] = 0.6 * spread[n] + 0.4 * (now - mean[n]).abs()
    for n in mean:
        torch.testing.assert_close(dynamics.sensitivity.means[f"{name}/{n}.mean"], mean[n])
        torch.testing.assert_close(dynamics.sensitivity.means[f"{name}/{n}.spread"], spread[n])


def test_the_ranks_that_matter_stay():
    """One site's update is multiplied by zero: nothing it does matters, so it loses its ranks to the other."""

    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.seen, self.unseen = nn.Linear(WIDTH, OUT), nn.Linear(WIDTH, OUT)

        def forward(self, x: Tensor) -> Tensor:
            return self.seen(x) + 1e-3 * self.unseen(x)

    torch.manual_seed(5)
    host = stand(adapt(Half(), "adalora", rank=RANK), 1, steps=STEPS, lr=1e-2, schedule="constant")
    host.learn(0, part(gamma=0.0), lambda step: (host.model(randn(8, WIDTH, key=f"x{step}")) - 1).square().mean())
    assert [int(w.count_nonzero()) for w in rank_weights(host.model).values()] == [RANK, 0]


# the penalty


def test_the_penalty_is_the_mean_distance_from_orthonormal_factors():
    host = started()
    found = []
    for _, bank in banks_of(host.model).values():
        q, p = bank.live["A"].detach(), bank.live["B"].detach()
        found += [(q @ q.T - torch.eye(RANK)).norm(), (p.T @ p - torch.eye(RANK)).norm()]
    assert float(skewness(host.model)) == pytest.approx(float(torch.stack(found).mean()), rel=1e-5)


def test_the_penalty_makes_the_factors_orthonormal():
    host, dynamics = started(200), part(gamma=1.0)
    before = float(skewness(host.model))
    host.learn(0, dynamics, lambda step: 0 * loss(host, step))
    assert float(skewness(host.model)) < 0.1 * before


# the block


def test_it_starts_at_the_base_and_its_strengths_learn_first():
    host, x = started(), randn(9, WIDTH, key="t")
    torch.manual_seed(5)
    plain = nn.Sequential(nn.Linear(WIDTH, OUT), nn.Tanh(), nn.Linear(OUT, 10))
    assert torch.equal(host.model(x), plain(x))
    loss(host, 0).backward()
    for _, bank in banks_of(host.model).values():
        assert bank.live["w"].grad.norm() > 0 and bank.live["A"].grad.norm() == 0
        assert 0.015 < float(bank.live["A"].std()) < 0.025


def test_merged_it_computes_the_same():
    host, x = started(), randn(9, WIDTH, key="t")
    host.learn(0, part(), lambda step: loss(host, step))
    before = host.model(x).detach()
    torch.testing.assert_close(merge(host.model)(x), before, rtol=0, atol=1e-5)


@pytest.mark.parametrize("settings", [{"initial": 0.6, "final": 0.4}, {"target": 0.0}, {"every": 0}])
def test_settings_that_leave_no_course_are_refused(settings):
    with pytest.raises(UsageError):
        part(**settings)
