"""Every convention against worked values, against formulas written a second time with numpy, and against its limits."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from rankwise.errors import DataError
from rankwise.learning import metrics

WORKED = [[0.9], [0.8, 0.85], [0.7, 0.75, 0.8]]  # the survey's three tasks
ZERO_SHOT_CLIP = [24.3, 88.4, 68.2, 44.6, 54.9, 71.0, 88.5, 59.4, 89.0, 64.7, 65.2]  # ZSCL, MTIL order I


def random_matrix(tasks: int, seed: int, rows: int | None = None) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0, 100, size=(tasks if rows is None else rows, tasks))


def shapes() -> list[tuple[int, int]]:
    return [(tasks, seed) for tasks in (2, 3, 5, 11) for seed in range(10)]


# Worked values.


def test_the_surveys_worked_values():
    assert metrics.final_average(WORKED) == pytest.approx(0.75)
    assert metrics.average_incremental(WORKED) == pytest.approx(0.825)
    assert metrics.forgetting_best_minus_last(WORKED) == pytest.approx(0.15)
    assert metrics.backward_transfer(WORKED) == pytest.approx(-0.15)
    assert metrics.learning_accuracy(WORKED) == pytest.approx(0.85)
    assert [metrics.average_at(WORKED, k) for k in (1, 2, 3)] == pytest.approx([0.9, 0.825, 0.75])


def test_trace_divides_by_all_tasks_and_gains_do_not_cancel():
    assert metrics.trace_bwt(WORKED) == pytest.approx((0.2 + 0.1 + 0) / 3)
    gained = [[40.0, 0, 0], [50.0, 60.0, 0], [70.0, 30.0, 20.0]]  # +30 and -30
    assert metrics.trace_bwt(gained) == pytest.approx(30 / 3)
    assert metrics.backward_transfer(gained) == pytest.approx(0.0)
    assert metrics.trace_op(gained) == pytest.approx(40.0)


def test_the_forgetting_conventions_differ_where_they_should():
    R = [[50.0, 10.0, 0.0], [80.0, 60.0, 5.0], [60.0, 90.0, 70.0]]  # task 1 rises then falls; task 2 ends at its best
    assert metrics.forgetting_per_task(R) == pytest.approx([20.0, -30.0])
    assert metrics.forgetting_best_minus_last(R) == pytest.approx(-5.0)
    assert metrics.forgetting_first_minus_last(R) == pytest.approx((-10 - 30) / 2)
    assert metrics.forgetting_best_ever_minus_last(R) == pytest.approx((20 + 0) / 2)
    assert metrics.trace_bwt(R) == 0.0


def test_best_minus_last_counts_ability_from_before_a_task_was_learned():
    R = [[90.0, 88.0], [80.0, 70.0], [80.0, 60.0]]
    with pytest.raises(DataError, match="3 rows but 2 columns"):
        metrics.forgetting_best_minus_last(R)
    R = [[90.0, 88.0, 0.0], [80.0, 70.0, 0.0], [80.0, 60.0, 50.0]]
    assert metrics.forgetting_best_minus_last(R) == pytest.approx((10 + 28) / 2)
    triangle = [[90.0], [80.0, 70.0], [80.0, 60.0, 50.0]]
    assert metrics.forgetting_best_minus_last(triangle) == pytest.approx((10 + 10) / 2)


def test_forward_transfer_of_gem_and_of_the_survey():
    R = [[90.0, 30.0, 20.0], [80.0, 85.0, 40.0], [70.0, 75.0, 80.0]]
    assert metrics.forward_transfer_zero_shot(R, [10.0, 10.0, 10.0]) == pytest.approx((20 + 30) / 2)
    assert metrics.forward_transfer_from_scratch(R, [99.0, 80.0, 90.0]) == pytest.approx((5 - 10) / 2)
    assert metrics.intransigence(R, [92.0, 85.0, 86.0]) == pytest.approx((2 + 0 + 6) / 3)


def test_seen_accuracy_weighs_samples():
    R = [[80.0, 0.0], [60.0, 90.0]]
    assert metrics.seen_accuracy(R, [300, 100]) == pytest.approx((60 * 300 + 90 * 100) / 400)
    assert metrics.seen_accuracy_incremental(R, [300, 100]) == pytest.approx((80 + 67.5) / 2)
    assert metrics.seen_accuracy(R, [7, 7]) == pytest.approx(metrics.final_average(R))


# Cross-domain streams.


def test_an_untouched_model_scores_its_zero_shot_row():
    R = [ZERO_SHOT_CLIP] * 11
    assert round(metrics.xtail_transfer(R) or 0, 1) == 69.4
    assert round(metrics.xtail_average(R) or 0, 1) == round(metrics.xtail_last(R) or 0, 1) == 65.3
    assert metrics.forgetting_best_minus_last(R) == metrics.backward_transfer(R) == 0.0


def test_transfer_averages_rows_before_data_sets():
    R = [[50.0, 10.0, 20.0], [50.0, 60.0, 40.0], [50.0, 60.0, 70.0]]
    assert metrics.xtail_transfer(R) == pytest.approx((10 + (20 + 40) / 2) / 2)
    all_cells_at_once = (10 + 20 + 40) / 3
    assert metrics.xtail_transfer(R) != pytest.approx(all_cells_at_once)
    assert metrics.xtail_average(R) == pytest.approx(sum(map(sum, R)) / 9)
    assert metrics.xtail_last(R) == pytest.approx(60.0)


def test_a_score_of_exactly_zero_counts_in_transfer():
    R = [[50.0, 0.0, 0.0], [50.0, 60.0, 40.0], [50.0, 60.0, 70.0]]
    assert metrics.xtail_transfer(R) == pytest.approx((0 + 20) / 2)


def test_cross_domain_numbers_need_a_finished_stream():
    R = random_matrix(4, seed=0, rows=3).tolist()
    assert metrics.xtail_transfer(R) is metrics.xtail_average(R) is metrics.xtail_last(R) is None
    assert metrics.final_average(R) == pytest.approx(np.mean(R[2][:3]))


# Against numpy, and properties.


@pytest.mark.parametrize(("tasks", "seed"), shapes())
def test_formulas_written_twice(tasks, seed):
    A = random_matrix(tasks, seed)
    zero, alone, joint = np.random.default_rng(seed + 99).uniform(0, 100, size=(3, tasks))
    sizes = np.random.default_rng(seed).integers(1, 500, size=tasks)
    diagonal, last, before = np.diag(A), A[-1], slice(0, tasks - 1)
    expected = {
        "final_average": last.mean(),
        "average_incremental": np.mean([A[k, : k + 1].mean() for k in range(tasks)]),
        "learning_accuracy": np.trace(A) / tasks,
        "seen_accuracy": last @ sizes / sizes.sum(),
        "seen_accuracy_incremental": np.mean([np.average(A[k, : k + 1], weights=sizes[: k + 1]) for k in range(tasks)]),
        "forgetting": (A[:-1].max(0) - last)[before].mean(),
        "forgetting_best_minus_last": (A[:-1].max(0) - last)[before].mean(),
        "forgetting_first_minus_last": (diagonal - last)[before].mean(),
        "forgetting_best_ever_minus_last": (A.max(0) - last)[before].mean(),
        "backward_transfer": (last - diagonal)[before].mean(),
        "forward_transfer": (np.diag(A, 1) - zero[1:]).mean(),
        "forward_transfer_from_scratch": (diagonal - alone)[1:].mean(),
        "intransigence": (joint - diagonal).mean(),
        "transfer": np.mean([A[:i, i].mean() for i in range(1, tasks)]),
        "xtail_average": A.mean(0).mean(),
        "last": last.mean(),
        "trace_op": last.mean(),
        "trace_bwt": np.maximum(diagonal - last, 0).mean(),
    }
    found = metrics.summary(A.tolist(), zero.tolist(), sizes.tolist(), joint.tolist(), alone.tolist())
    assert found == pytest.approx(expected, abs=1e-12)
    assert list(found) == list(expected)


@pytest.mark.parametrize(("tasks", "seed"), shapes())
def test_the_padded_form_of_mammoth_gives_the_same_forgetting(tasks, seed):
    lower = [row[: t + 1] for t, row in enumerate(random_matrix(tasks, seed).tolist())]
    padded = np.array([row + [0.0] * (tasks - len(row)) for row in lower])
    expected = np.mean((padded.max(axis=0) - padded[-1])[:-1])
    assert metrics.forgetting_best_ever_minus_last(lower) == pytest.approx(expected)
    assert [len(row) for row in lower] == list(range(1, tasks + 1)), "the argument must stay as it was"


@pytest.mark.parametrize(("tasks", "seed"), shapes())
def test_forgetting_is_at_least_minus_backward_transfer(tasks, seed):
    full = random_matrix(tasks, seed)
    for R in (full.tolist(), [row[: t + 1] for t, row in enumerate(full.tolist())]):
        best, first = metrics.forgetting_best_minus_last(R), metrics.forgetting_first_minus_last(R)
        ever, back = metrics.forgetting_best_ever_minus_last(R), metrics.backward_transfer(R)
        assert best is not None and first is not None and ever is not None and back is not None
        assert ever >= best >= first - 1e-12
        assert first == pytest.approx(-back)
        assert ever >= 0


def test_improving_then_dropping_makes_the_inequality_strict():
    R = [[0.5], [0.9, 0.8], [0.5, 0.8, 0.8]]
    assert metrics.backward_transfer(R) == pytest.approx(0.0)
    assert metrics.forgetting_best_minus_last(R) == pytest.approx(0.2)


def test_constant_columns():
    R = [[3.0, 5.0, 10.0]] * 3
    found = metrics.summary(R, zero_shot=R[0], reference=R[0], scratch=R[0])
    assert found["final_average"] == found["last"] == found["xtail_average"] == pytest.approx(6.0)
    assert found["transfer"] == pytest.approx(7.5)
    zero = [key for key in found if "forgetting" in key or key in {"backward_transfer", "trace_bwt", "intransigence"}]
    assert len(zero) == 7
    assert all(found[key] == 0.0 for key in zero)
    assert found["forward_transfer"] == found["forward_transfer_from_scratch"] == 0.0


# Undefined.


def test_one_task_has_nothing_to_forget():
    found = metrics.summary([[0.5]], zero_shot=[0.1], sizes=[3], reference=[0.6], scratch=[0.4])
    defined = {key: value for key, value in found.items() if value is not None}
    assert defined == pytest.approx(
        {
            "final_average": 0.5,
            "average_incremental": 0.5,
            "learning_accuracy": 0.5,
            "seen_accuracy": 0.5,
            "seen_accuracy_incremental": 0.5,
            "intransigence": 0.1,
            "xtail_average": 0.5,
            "last": 0.5,
            "trace_op": 0.5,
            "trace_bwt": 0.0,
        }
    )


def test_joint_training_has_only_the_last_row():
    R = [[None] * 3, [None] * 3, [0.9, 0.8, 0.7]]
    found = metrics.summary(R, zero_shot=[0.1] * 3, sizes=[1, 1, 2], reference=[0.9] * 3, scratch=[0.8] * 3)
    known = {key for key, value in found.items() if value is not None}
    assert known == {"final_average", "trace_op", "last", "seen_accuracy"}
    assert found["final_average"] == pytest.approx(0.8)
    assert found["seen_accuracy"] == pytest.approx(0.775)


def test_nothing_learned_yet():
    assert set(metrics.summary([], zero_shot=[0.1], sizes=[3]).values()) == {None}


def test_without_the_vectors_their_numbers_are_null():
    found = metrics.summary(random_matrix(3, 0).tolist())
    missing = {key for key, value in found.items() if value is None}
    assert missing == {
        "forward_transfer",
        "forward_transfer_from_scratch",
        "intransigence",
        "seen_accuracy",
        "seen_accuracy_incremental",
    }


def test_a_triangle_has_no_zero_shot_numbers():
    found = metrics.summary(WORKED, zero_shot=[0.1, 0.1, 0.1])
    assert found["forward_transfer"] is found["transfer"] is found["xtail_average"] is None
    assert found["last"] == pytest.approx(0.75)


@pytest.mark.parametrize("cell", [(1, 0), (1, 1), (2, 0)])
def test_a_missing_cell_makes_only_its_formulas_undefined(cell):
    R: list[list[float | None]] = random_matrix(3, 0).tolist()
    R[cell[0]][cell[1]] = None
    found = metrics.summary(R, sizes=[1, 2, 3])
    assert found["forgetting"] is None
    assert (found["seen_accuracy"] is None) == (cell[0] == 2)
    assert (found["final_average"] is None) == (cell[0] == 2)
    assert (found["learning_accuracy"] is None) == (cell == (1, 1))
    assert (found["backward_transfer"] is None) == (cell != (1, 0))
    assert found["transfer"] is not None


def test_missing_cells_of_the_vectors():
    R = random_matrix(3, 0).tolist()
    assert metrics.forward_transfer_zero_shot(R, [None, 1.0, 2.0]) is not None, "b_1 is not in the formula"
    assert metrics.forward_transfer_zero_shot(R, [1.0, None, 2.0]) is None
    assert metrics.intransigence(R, [None, 1.0, 2.0]) is None


def test_the_argument_is_not_changed_and_results_are_plain_floats():
    R = [[np.float32(0.5)], [1, 0.25]]
    found = metrics.summary(R)  # type: ignore[arg-type]
    assert [len(row) for row in R] == [1, 2]
    assert all(value is None or type(value) is float for value in found.values())
    assert found["backward_transfer"] == 0.5


# Refusals.


@pytest.mark.parametrize(
    ("R", "message"),
    [
        ([[0.9, 0.1], [0.8]], r"rows have \[2, 1\] cells"),
        ([[0.9, 0.1, 0.2], [0.8, 0.1], [0.8, 0.1, 0.2]], "give every row one cell a task"),
        ([[0.9, 0.1], [math.nan, 0.2]], r"R\[1\]\[0\] = nan is not a finite number"),
        ([[0.9, math.inf], [0.1, 0.2]], r"R\[0\]\[1\] = inf"),
        ([[0.9, "0.3"], [0.1, 0.2]], r"R\[0\]\[1\] = '0.3'"),
        ([[True, 0.3], [0.1, 0.2]], r"R\[0\]\[0\] = True"),
        ([[0.1], [0.1]], "2 rows but 1 columns"),
    ],
)
def test_unusable_matrices_are_refused_by_cell(R, message):
    for function in (metrics.final_average, metrics.trace_bwt, metrics.xtail_transfer, metrics.summary):
        with pytest.raises(DataError, match=message):
            function(R)


def test_unusable_vectors_are_refused():
    R = random_matrix(3, 0).tolist()
    with pytest.raises(DataError, match="zero_shot: 2 values for 3 tasks"):
        metrics.forward_transfer_zero_shot(R, [0.1, 0.2])
    with pytest.raises(DataError, match=r"reference\[1\] = nan"):
        metrics.intransigence(R, [0.1, math.nan, 0.2])
    with pytest.raises(DataError, match=r"sizes\[2\] = 0"):
        metrics.seen_accuracy(R, [1, 2, 0])
    with pytest.raises(DataError, match="sizes: 1 values for 3 tasks"):
        metrics.seen_accuracy(R, [1])
    for k in (0, 4):
        with pytest.raises(DataError, match=f"k = {k} but R has 3 rows"):
            metrics.average_at(R, k)


# Intervals over seeds.


@pytest.mark.parametrize(
    ("level", "freedom", "expected"),
    [
        (0.95, 1, 12.7062047),
        (0.95, 2, 4.3026527),
        (0.95, 4, 2.7764451),
        (0.95, 9, 2.2621572),
        (0.99, 3, 5.8409093),
        (0.90, 30, 1.6972609),
        (0.95, 1000, 1.9623391),
        (0.50, 5, 0.7266868),
    ],
)
def test_quantiles_of_students_t(level, freedom, expected):
    assert metrics.t_quantile(level, freedom) == pytest.approx(expected, abs=1e-6)


def test_the_interval_by_hand():
    found = metrics.mean_interval([0.70, 0.72, 0.74])
    assert found is not None and found.low is not None and found.high is not None
    assert found.mean == pytest.approx(0.72)
    assert found.high - found.mean == pytest.approx(4.3026527 * 0.02 / math.sqrt(3))
    assert found.mean - found.low == pytest.approx(found.high - found.mean)
    assert found.n == 3


def test_the_interval_covers_as_often_as_it_says():
    draw = random.Random(0)
    samples = [[draw.gauss(5.0, 2.0) for _ in range(4)] for _ in range(2000)]
    intervals = [metrics.mean_interval(sample, level=0.9) for sample in samples]
    covered = sum(1 for found in intervals if found and (found.low or 0) <= 5.0 <= (found.high or 0))
    assert covered / 2000 == pytest.approx(0.9, abs=0.02)


def test_intervals_that_do_not_exist():
    assert metrics.mean_interval([]) is None
    assert metrics.mean_interval([0.5, None]) is None
    assert metrics.mean_interval([0.5]) == (0.5, None, None, 1)
    assert metrics.mean_interval([0.5, 0.5]) == (0.5, 0.5, 0.5, 2)
    with pytest.raises(DataError, match="level = 95"):
        metrics.mean_interval([0.5, 0.6], level=95)
    with pytest.raises(DataError, match=r"values\[1\] = nan"):
        metrics.mean_interval([0.5, math.nan])


def test_diagnostics_change_is_the_distance_since_a_task_was_learnt():
    rows = [
        [{"share": [1.0]}, {}],
        [{"share": [0.75, 0.25], "rate": [0.5]}, {"share": [0.5, 0.5], "rate": [1.0]}],
    ]
    assert metrics.diagnostics_change(rows) == {"rate": [None, 0.0], "share": [0.5, 0.0]}
    assert metrics.diagnostics_change([[{}, {}], [{}, {}]]) == {}
