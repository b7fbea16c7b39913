"""The buffer is a fair sample, its draws are functions of counters, and the rehearsal is the mean over the draw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from scipy.stats import chi2
from torch import Tensor, nn

from rankwise.config import TrainSettings
from rankwise.objectives import Outputs
from rankwise.strategies import Replay, ReplayBuffer, ReplaySettings
from rankwise.streams import Batch, Split, Task


def labels_of(task: int, count: int, classes: int = 2) -> Tensor:
    return torch.arange(count) % classes + classes * task


def filled(policy: str, size: int, counts: Sequence[int], seed: int = 0, classes: int = 2) -> ReplayBuffer:
    buffer = ReplayBuffer(size, policy, seed)
    for task, count in enumerate(counts):
        buffer.offer(task, labels_of(task, count, classes))
    return buffer


def p_value(counts: Tensor, runs: int, share: float) -> float:
    """Return how likely inclusion counts [rows] are if each row is in with probability `share`, all rows alike."""
    rows = len(counts)
    statistic = ((counts - runs * share) ** 2).sum() / (runs * share * (1 - share)) * (rows - 1) / rows
    return float(chi2.sf(float(statistic), rows - 1))


def inclusions(policy: str, size: int, counts: Sequence[int], runs: int, classes: int = 2) -> Tensor:
    offsets = torch.tensor([0, *torch.tensor(counts).cumsum(0).tolist()])
    found = torch.zeros(int(sum(counts)))
    for seed in range(runs):
        rows = filled(policy, size, counts, seed, classes).rows
        found[offsets[rows[:, 0]] + rows[:, 1]] += 1
    return found


# what the buffer holds


def test_a_reservoir_holds_every_row_seen_with_equal_probability():
    counts = inclusions("reservoir", 15, [30, 10, 20], 400)
    assert counts.sum() == 400 * 15
    assert p_value(counts, 400, 15 / 60) > 1e-3


def test_a_biased_sample_would_be_noticed():
    counts = inclusions("reservoir", 15, [30, 10, 20], 400)
    counts[:10] += 25
    assert p_value(counts, 400, 15 / 60) < 1e-3


def test_a_balanced_buffer_is_fair_within_each_class():
    counts = inclusions("balanced", 12, [20, 20], 400)
    for task in range(2):
        for c in range(2):
            of_class = counts[20 * task : 20 * task + 20][c::2]
            assert of_class.sum() == 400 * 3 and p_value(of_class, 400, 3 / 10) > 1e-3


@pytest.mark.parametrize(("size", "expected"), [(12, [2] * 6), (15, [3, 3, 3, 2, 2, 2]), (4, [1, 1, 1, 1, 0, 0])])
def test_a_balanced_buffer_gives_each_class_its_share_the_remainder_to_the_smallest_ids(size, expected):
    rows = filled("balanced", size, [30, 30, 30]).rows
    assert [int((rows[:, 2] == c).sum()) for c in range(6)] == expected


def test_a_class_with_fewer_rows_than_its_share_keeps_them_all():
    buffer = ReplayBuffer(20, "balanced", 0)
    buffer.offer(0, torch.tensor([0] * 3 + [1] * 50))
    assert [int((buffer.rows[:, 2] == c).sum()) for c in range(2)] == [3, 10]


@pytest.mark.parametrize("policy", ["reservoir", "balanced"])
def test_what_left_the_buffer_never_comes_back(policy):
    buffer, held = ReplayBuffer(16, policy, 0), []
    for task in range(4):
        buffer.offer(task, labels_of(task, 40))
        held.append({tuple(row) for row in buffer.rows.tolist()})
        assert len(held[-1]) == len(buffer.rows) == 16
    for before, after in pairwise(held):
        old = {row for row in after if row[0] < max(t for t, _, _ in after)}
        assert old <= before


@pytest.mark.parametrize("policy", ["reservoir", "balanced"])
def test_rows_carry_their_own_labels_and_a_small_stream_is_kept_whole(policy):
    buffer = filled(policy, 100, [7, 5])
    assert len(buffer.rows) == 12
    for task, position, label in buffer.rows.tolist():
        assert label == int(labels_of(task, 7)[position])


def test_rows_offered_in_pieces_and_again_are_kept_as_if_offered_at_once():
    """Of a reservoir: what it holds is a function of which rows were ever offered."""
    whole, pieces, labels = filled("reservoir", 12, [40]), ReplayBuffer(12, "reservoir", 0), labels_of(0, 40)
    for seed in range(3):  # epochs
        for places in torch.randperm(40, generator=torch.Generator().manual_seed(seed)).split(7):
            pieces.offer(0, labels[places], places)
    assert torch.equal(pieces.rows, whole.rows)


def test_a_buffer_is_a_function_of_its_seed():
    assert torch.equal(filled("reservoir", 9, [40, 40]).rows, filled("reservoir", 9, [40, 40]).rows)
    assert not torch.equal(filled("reservoir", 9, [40, 40]).rows, filled("reservoir", 9, [40, 40], seed=1).rows)


# draws


def test_a_draw_is_without_replacement_and_a_function_of_the_step():
    buffer = filled("reservoir", 30, [40, 40])
    drawn = [buffer.draw(10, step) for step in range(50)]
    assert all(len(rows.unique(dim=0)) == 10 for rows in drawn)
    held = {tuple(row) for row in buffer.rows.tolist()}
    assert all({tuple(row) for row in rows.tolist()} <= held for rows in drawn)
    assert torch.equal(buffer.draw(10, 3), drawn[3]) and not torch.equal(drawn[3], drawn[4])
    assert {tuple(row) for rows in drawn for row in rows.tolist()} == held


def test_a_draw_takes_each_stored_row_with_equal_probability():
    buffer = filled("reservoir", 20, [40])
    where = {tuple(row): i for i, row in enumerate(buffer.rows.tolist())}
    counts = torch.zeros(20)
    for step in range(600):
        for row in buffer.draw(5, step).tolist():
            counts[where[tuple(row)]] += 1
    assert p_value(counts, 600, 5 / 20) > 1e-3


def test_a_draw_of_more_than_there_is_takes_all():
    buffer = filled("reservoir", 30, [4])
    assert len(buffer.draw(32, 0).unique(dim=0)) == 4
    assert ReplayBuffer(5, "reservoir", 0).draw(3, 0).shape == (0, 3)


# the strategy


class Host:
    """A learner whose loss on an example is its label, and which notes what it is asked."""

    seed = 0
    train = TrainSettings(batch_size=5)

    def __init__(self, counts: Sequence[int]) -> None:
        self.asked: list[tuple[int, ...]] = []
        self.tasks: list[Task] = []
        for t, count in enumerate(counts):
            labels = labels_of(t, count)
            split = Split(torch.zeros(count, 2, 2, dtype=torch.uint8), labels, torch.arange(count))
            self.tasks.append(Task(f"t{t}", t, tuple(sorted(set(labels.tolist()))), split, None, split))

    @property
    def seen(self) -> tuple[int, ...]:
        return tuple(c for task in self.tasks for c in task.classes)

    def live(self) -> Mapping[str, nn.Parameter]:
        return {}

    def rehearse(self, batch: Batch, classes: Sequence[int]) -> Tensor:
        self.asked.append(tuple(classes))
        return batch.labels.float()

    def examples(self, rows: Tensor, drawn: tuple[str, int] | None = None) -> Batch:
        labels = torch.stack([self.tasks[t].train.labels[i] for t, i in rows.tolist()])
        return Batch({"x": rows[:, :1].float()}, labels, rows[:, 1])


def after(tasks: int, host: Host, **settings: Any) -> Replay:
    strategy = Replay(ReplaySettings(**settings), 0)
    for task in host.tasks[:tasks]:
        strategy.begin_task(host, task)
        strategy.end_task(host, task)
    return strategy


def test_nothing_is_rehearsed_in_the_first_task():
    host = Host([10, 10])
    assert not after(0, host).terms(host, 0)


def test_the_rehearsal_ranks_all_seen_classes():
    host = Host([10, 10, 10])
    strategy = after(2, host, size=12, batch_size=7, weight=0.5)
    (term,) = strategy.terms(host, 4)
    assert (term.name, term.weight, len(term.batch)) == ("rehearsal", 0.5, 7)
    assert torch.equal(term.losses(term.batch), term.batch.labels.float())
    assert host.asked == [(0, 1, 2, 3, 4, 5)]
    drawn = strategy.buffer.draw(7, 4)
    assert sorted(term.batch.labels.tolist()) == sorted(drawn[:, 2].tolist())


def test_ranked_within_their_tasks_the_terms_add_up_to_the_mean_over_the_draw():
    host = Host([30, 20, 10])
    strategy = after(3, host, size=30, batch_size=20, weight=2.0, classes="task")
    terms = strategy.terms(host, 0)
    assert [term.name for term in terms] == ["rehearsal.0", "rehearsal.1", "rehearsal.2"]
    total = sum(term.weight * float(term.losses(term.batch).mean()) for term in terms)
    assert total == pytest.approx(2.0 * float(strategy.buffer.draw(20, 0)[:, 2].float().mean()))
    assert host.asked == [(0, 1), (2, 3), (4, 5)]
    assert all(set(term.batch.labels.tolist()) <= set(host.tasks[t].classes) for t, term in enumerate(terms))


def test_what_is_remembered_is_what_the_buffer_holds_if_means_are_to_be_refreshed():
    host = Host([10, 10])
    strategy = after(2, host, size=6)
    assert torch.equal(strategy.remembered(), strategy.buffer.rows[:, :2])
    assert after(2, host, size=6, refresh_means=False).remembered().shape == (0, 2)


@pytest.mark.parametrize("policy", ["reservoir", "balanced"])
def test_a_restored_strategy_goes_on_as_if_nothing_had_happened(policy):
    host = Host([30, 30, 30])
    whole, first = after(3, host, size=12, policy=policy), after(2, host, size=12, policy=policy)
    second = Replay(ReplaySettings(size=12, policy=policy), 0)
    second.restore({name: tensor.clone() for name, tensor in first.state().items()})
    assert torch.equal(second.buffer.draw(5, 9), first.buffer.draw(5, 9))
    second.end_task(host, host.tasks[2])
    assert torch.equal(second.buffer.rows, whole.buffer.rows)


def test_a_restored_state_is_a_copy():
    host = Host([10])
    strategy = after(1, host, size=4)
    state = {name: tensor.clone() for name, tensor in strategy.state().items()}
    strategy.restore(state)
    state["rows"].zero_()
    assert strategy.buffer.rows.sum() > 0


@pytest.mark.parametrize("weight", [1.0, 3.0])
def test_averaged_both_losses_share_one(weight):
    host = Host([10, 10])
    strategy = after(1, host, size=12, weight=weight, average=True)
    (term,) = strategy.terms(host, 0)
    new = strategy.own(host, term.batch, Outputs(torch.zeros(3, 1)), torch.ones(3))
    assert term.weight == weight / (1 + weight) and torch.allclose(new, torch.full((3,), 1 / (1 + weight)))
    assert torch.equal(after(0, host, average=True).own(host, term.batch, Outputs(torch.zeros(3, 1)), new), new)


def test_a_batch_size_of_zero_draws_as_many_as_there_are_new_ones():
    host = Host([30, 10])
    (term,) = after(1, host, size=20, batch_size=0).terms(host, 0)
    assert len(term.batch) == host.train.batch_size == 5
