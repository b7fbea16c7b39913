from __future__ import annotations

import math

import pytest

from rankwise.errors import UsageError
from rankwise.sweeping.grid import combinations, parse_grid


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("train.lr=[1e-4, 0.001]", [1e-4, 1e-3]),
        (" adapter.rank = [2]", [2]),
        ('train.schedule=["cosine", "linear"]', ["cosine", "linear"]),
        ("adapter.layers=[[0, 1], [2, 3]]", [[0, 1], [2, 3]]),
        ("objective.imprint=[true, false]", [True, False]),
        ("train.lr=log(1e-4, 1e-2, 3)", [1e-4, 1e-3, 1e-2]),
        ("train.lr=log(1e-4,1e-2,5)", [1e-4, 3.16228e-4, 1e-3, 3.16228e-3, 1e-2]),
    ],
)
def test_texts_are_values(text, values):
    (found,) = parse_grid([text]).values()
    assert found == values


def test_draws_are_log_uniform_and_a_function_of_the_seed():
    (drawn,) = parse_grid(["train.lr=loguniform(1e-5, 1e-1, 400)"], seed=3).values()
    assert [drawn] == list(parse_grid(["train.lr=loguniform(1e-5, 1e-1, 400)"], seed=3).values())
    assert [drawn] != list(parse_grid(["train.lr=loguniform(1e-5, 1e-1, 400)"], seed=4).values())
    shares = [math.log10(value) / 4 + 1.25 for value in drawn]
    assert 0 <= min(shares) < 0.05 and 0.95 < max(shares) <= 1
    assert sum(share < 0.5 for share in shares) == pytest.approx(200, abs=40)


def test_every_combination():
    grid = parse_grid(["a=[1, 2]", "b=[3, 4]"])
    assert combinations(grid) == [{"a": 1, "b": 3}, {"a": 1, "b": 4}, {"a": 2, "b": 3}, {"a": 2, "b": 4}]
    assert combinations({}) == [{}]


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["train.lr"], "write key="),
        (["=[1]"], "write key="),
        (["a=[1]", "a=[2]"], "given twice"),
        (["a=[1, 1]"], "given twice"),
        (["a=[]"], "give a list"),
        (["a=3"], r"as in a=\[3\]"),
        (["a=[1"], "no TOML list"),
        (["a=lgo(1, 2, 3)"], "did you mean 'log'"),
        (["a=log(1, 2)"], "low, high and how many"),
        (["a=log(1, two, 3)"], "low, high and how many"),
        (["a=log(0, 1, 3)"], "0 < low < high"),
        (["a=log(2, 1, 3)"], "0 < low < high"),
        (["a=log(1, 2, 2.5)"], "whole number"),
        (["a=log(1, 2, 1)"], "whole number"),
        (["a=log(1, 2, 100000)"], "whole number"),
        (["a=log(1, inf, 3)"], "0 < low < high"),
        (["a=log(1, 2, nan)"], "whole number"),
    ],
)
def test_slips_are_refused(texts, message):
    with pytest.raises(UsageError, match=message):
        parse_grid(texts)
