"""Joint training: all tasks at once, so that only the last row of R exists."""

from __future__ import annotations

import pytest
from digit_runs import events, read_json, stored

from rankwise.adapters import banks_of
from rankwise.errors import ConflictError


def test_only_the_last_row_of_the_matrix_is_known(digits):
    matrix = digits("joint").results["matrix"]
    assert len(matrix) == 3 and matrix[:2] == [[None] * 3] * 2
    assert all(0 <= cell <= 1 for cell in matrix[2])


def test_it_takes_the_steps_of_all_tasks_together_on_all_classes(digits):
    run = digits("joint")
    assert run.results["steps"] == 3 * 5 == digits("lora").results["steps"]
    assert {event["task"] for event in events(run.path, "step")} == {"all tasks"}
    head = read_json(run.path, "adapter/head.json")
    assert len(head["classes"]) == 10 and all(block["live"] for block in head["classes"])
    assert stored(run.path, "head.safetensors")["means.means"].shape == (10, 128)


def test_it_has_one_block(digits):
    for _, bank in banks_of(digits("joint").model).values():
        assert [block.size for block in bank.blocks] == [8]


def test_nothing_is_forgotten_or_gained_by_order(digits):
    results = digits("joint").results
    assert results["final_average"] == pytest.approx(sum(results["matrix"][2]) / 3)
    assert results["forgetting"] is None and results["learning_accuracy"] is None


def test_a_strategy_that_protects_the_past_is_refused_by_name(digits):
    with pytest.raises(ConflictError, match="strategy 'replay' and order = 'at-once'.*remove 'replay'"):
        digits("joint", strategy=[{"kind": "replay"}])
