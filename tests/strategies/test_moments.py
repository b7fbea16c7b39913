"""Moments that are cut down: what stays of them, alike in both, and counters that go on."""

from __future__ import annotations

import torch
from torch import nn

from rankwise.seeds import generator
from rankwise.strategies.moments import KEEPS, cut


def stepped() -> tuple[torch.optim.Optimizer, nn.Parameter]:
    parameter = nn.Parameter(torch.randn(4, 5, generator=generator(0, "p")))
    rule = torch.optim.AdamW([parameter])
    for _ in range(2):
        parameter.grad = torch.randn(4, 5, generator=generator(0, "g"))
        rule.step()
    return rule, parameter


def test_the_largest_moments_are_the_ones_that_stay():
    held = torch.tensor([[3.0, -9.0, 0.5], [1.0, 4.0, -0.1]])
    assert KEEPS["magnitude"](held, 0.67, torch.Generator()).tolist() == [[0.0, 1.0, 0.0], [0.0, 1.0, 0.0]]
    assert not KEEPS["magnitude"](held, 1.0, torch.Generator()).any()
    assert KEEPS["magnitude"](held, 0.0, torch.Generator()).all()


def test_both_moments_of_a_value_live_or_die_together():
    rule, parameter = stepped()
    before = {key: held.clone() for key, held in rule.state[parameter].items()}
    found = cut(rule, parameter, KEEPS["magnitude"], 0.75, generator(0, "x"))
    kept = found["exp_avg"] != 0
    assert int(kept.sum()) == 5 and torch.equal(kept, found["exp_avg_sq"] != 0)
    assert before["exp_avg"].abs()[kept].min() >= before["exp_avg"].abs()[~kept].max()
    assert all(torch.equal(found[key][kept], before[key][kept]) for key in ("exp_avg", "exp_avg_sq"))
    assert int(found["step"]) == 2 and torch.equal(rule.state[parameter]["exp_avg"], before["exp_avg"])


def test_a_random_share_stays_and_a_generator_repeats_it():
    held = torch.ones(100, 100)
    one, two, other = (KEEPS["random"](held, 0.9, generator(0, key)) for key in ("a", "a", "b"))
    assert torch.equal(one, two) and not torch.equal(one, other)
    assert 0.08 < float(one.mean()) < 0.12


def test_a_parameter_the_rule_has_not_seen_has_no_moments():
    rule, _ = stepped()
    assert cut(rule, nn.Parameter(torch.ones(2)), KEEPS["random"], 0.5, generator(0, "x")) == {}
