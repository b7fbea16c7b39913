"""Ranks with weights: which are lowest, what silences them, the thresholds entry by entry."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rankwise.adapters import Pair, attach, grow, pick_sites
from rankwise.adapters.gates import RankWeights
from rankwise.adapters.growth import Change
from rankwise.adapters.ranks import THRESHOLDS, lowest, rank_weights, selecting, silence, soft
from rankwise.seeds import generator


def randn(count: int, key: str) -> torch.Tensor:
    return torch.randn(count, generator=generator(0, key))


def weighed() -> nn.Module:
    """Return two sites, with a block of two and of three ranks."""
    model = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3))
    attach(model, pick_sites(model), Pair(RankWeights()), {"seed": 0})
    grow(model, [Change("append", "1", 2, "0"), Change("append", "1", 3, "1")], 0)
    return model


def test_the_lowest_are_marked_and_of_equal_ones_the_earlier():
    scores = torch.tensor([3.0, 1.0, 2.0, 1.0])
    assert lowest(scores, 0).tolist() == [False] * 4 and lowest(scores, 4).tolist() == [True] * 4
    assert lowest(scores, 1).tolist() == [False, True, False, False]
    assert lowest(scores, 3).tolist() == [False, True, True, True]


def test_marks_over_all_sites_silence_the_ranks_they_stand_for():
    model = weighed()
    assert {name: len(w) for name, w in rank_weights(model).items()} == {"0": 2, "1": 3}
    silence(model, torch.tensor([False, True, True, False, False]))
    assert {name: w.tolist() for name, w in rank_weights(model).items()} == {"0": [1.0, 0.0], "1": [0.0, 1.0, 1.0]}


def test_what_is_selected_is_what_is_left():
    model = weighed()
    with torch.no_grad():
        rank_weights(model)["1"].copy_(torch.tensor([7.0, 8.0, 9.0]))
    grow(model, selecting({"1": [2, 0], "0": range(2)}), 0)
    assert {name: sorted(w.tolist()) for name, w in rank_weights(model).items()} == {"0": [1.0, 1.0], "1": [7.0, 9.0]}


@pytest.mark.parametrize("name", THRESHOLDS)
def test_the_threshold_entry_by_entry(name):
    kappa, v = 0.25, torch.linspace(-1, 1, 41)
    for before, after in zip(v.tolist(), THRESHOLDS[name](v, kappa).tolist(), strict=True):
        shrunk = (1 if before > 0 else -1) * (abs(before) - kappa) if abs(before) > kappa else 0.0
        if name == "double":  # dead up to 2 kappa, but for kappa itself
            shrunk = before if abs(before) == kappa else shrunk if abs(before) >= 2 * kappa else 0.0
        assert after == pytest.approx(shrunk, abs=1e-7), before


@pytest.mark.parametrize("name", THRESHOLDS)
def test_a_threshold_of_zero_changes_nothing(name):
    v = randn(50, "v")
    assert torch.equal(THRESHOLDS[name](v, 0.0), v)


def test_the_soft_threshold_brings_no_two_values_further_apart():
    a, b = randn(1000, "a"), randn(1000, "b")
    for kappa in (0.01, 0.5, 2.0):
        assert bool(((soft(a, kappa) - soft(b, kappa)).abs() <= (a - b).abs() + 1e-7).all())
