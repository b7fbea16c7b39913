"""LoRA with a rehearsed buffer: what it adds to plain LoRA, and what it cannot go with."""

from __future__ import annotations

import pytest
import torch
from digit_runs import SMALL, events, lower_half, read_json, snapshots

from rankwise import papers
from rankwise.adapters import banks_of
from rankwise.api import learner_of, resolve
from rankwise.config import merged
from rankwise.errors import UsageError

REPLAY = {"kind": "replay", "size": 20, "batch_size": 6}


def test_the_method_is_lora_with_the_strategy():
    lora, replay = papers.method("lora"), papers.method("replay")
    assert replay.defaults == {"strategy": [{"kind": "replay"}]}
    assert (replay.gate, replay.growth, replay.live) == (lora.gate, lora.growth, lora.live)


def test_rehearsal_starts_with_the_second_task(digits):
    run = digits("replay", strategy=[REPLAY])
    assert lower_half(run.results["matrix"])
    names = [set(event["losses"]) for event in events(run.path, "step")]
    assert names == [{"classify"}] * 5 + [{"classify", "rehearsal"}] * 10


def test_offered_step_by_step_rows_of_the_task_under_way_are_rehearsed_too(digits):
    run = digits("replay", strategy=[{**REPLAY, "offer": "step", "average": True}])
    names = [set(event["losses"]) for event in events(run.path, "step")]
    assert names == [{"classify"}] + [{"classify", "rehearsal"}] * 14
    first = snapshots(run.path)[0]["strategies/replay/rows"]
    assert len(first) == 20 and set(first[:, 0].tolist()) == {0}


def test_the_buffer_holds_each_row_once_and_no_more_than_its_size(digits):
    run = digits("replay", strategy=[REPLAY])
    for t, end in enumerate(snapshots(run.path)):
        rows = end["strategies/replay/rows"]
        assert rows.shape == (20, 3) and len(rows.unique(dim=0)) == 20
        assert rows[:, 0].max() <= t


def test_all_seen_classes_learn_and_their_means_are_taken_again(digits):
    run = digits("replay", strategy=[REPLAY])
    assert all(block["live"] for block in read_json(run.path, "adapter/head.json")["classes"])
    assert len(read_json(run.path, "adapter/head.json")["classes"]) == 10
    refreshed, kept = (
        snapshots(r.path) for r in (run, digits("replay", strategy=[{**REPLAY, "refresh_means": False}]))
    )
    assert not torch.equal(refreshed[1]["objective/means"], kept[1]["objective/means"])
    owners, means = kept[1]["objective/owners"], kept[1]["objective/means"]
    assert torch.equal(means[owners[:, 1] == 0], kept[0]["objective/means"])


def test_a_rehearsal_of_no_weight_leaves_plain_lora(digits):
    nothing = {"kind": "replay", "batch_size": 1, "weight": 1e-12, "refresh_means": False}
    faint = digits("replay", objective={"classes": "task"}, strategy=[nothing])
    full, plain = digits("replay", strategy=[REPLAY]), digits("lora")
    assert faint.results["matrix"] == plain.results["matrix"]
    apart = 0.0
    for site, (_, bank) in banks_of(plain.model).items():
        for name, factor in bank.live.items():
            other = banks_of(faint.model)[site][1].live[name]
            torch.testing.assert_close(other, factor, rtol=1e-4, atol=1e-5)
            rehearsed = banks_of(full.model)[site][1].live[name]
            apart = max(apart, float((rehearsed - factor).detach().abs().max()))
    assert apart > 1e-4  # a rehearsal of full weight does move them


def test_two_replay_strategies_are_refused_by_name(digits):
    with pytest.raises(UsageError, match="names a kind twice"):
        digits("replay", strategy=[{"kind": "replay"}, {"kind": "replay", "size": 10}])


def test_replay_goes_with_a_method_that_grows(digits):
    run = digits("mora", strategy=[REPLAY])
    assert lower_half(run.results["matrix"])
    assert {"classify", "rehearsal"} == set(events(run.path, "step")[-1]["losses"])
    for _, bank in banks_of(run.model).values():
        assert bank.size == 24


@pytest.mark.parametrize(
    ("method", "asked", "ranked"),
    [("replay", {}, 10), ("replay", {"classes": "task"}, 2), ("lora", {}, 2), ("lora", {"classes": "seen"}, 10)],
)
def test_new_examples_are_ranked_among_all_classes_where_old_ones_are_rehearsed(method, asked, ranked):
    learner = learner_of(*resolve(merged(SMALL, {"method": method, "objective": asked})))
    for task in learner.curriculum:
        learner.begin_task(task)
    assert len(learner.classes(learner.task)) == ranked
