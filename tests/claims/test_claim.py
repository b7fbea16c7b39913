"""What a claim says, and how values are judged."""

from __future__ import annotations

import pytest

from rankwise.claims.harness.claim import Threshold, worst


@pytest.mark.parametrize(
    ("relation", "values", "verdict"),
    [
        ("<=", [0.5, 0.51, 0.52], "holds"),
        ("<=", [0.5, 0.9, 1.3], "undecided"),  # the mean meets 1, the interval 0.9 +- 1 does not
        ("<=", [0.9, 1.0, 1.2], "does not hold"),  # so does half of the interval, but not the mean
        ("<", [1.0, 1.0, 1.0], "does not hold"),
        ("<=", [1.0, 1.0, 1.0], "holds"),
        (">=", [1.5, 1.51, 1.52], "holds"),
        (">", [0.5, 0.5, 0.5], "does not hold"),
        (">", [1.1, 1.1, 1.1], "holds"),
        ("<=", [0.5], "undecided"),  # one seed has no interval
        ("<=", [0.5, None, 0.5], "does not hold"),
    ],
)
def test_the_mean_is_judged_with_its_interval(relation, values, verdict):
    assert Threshold("x", relation, 1.0).judge(values) == verdict


@pytest.mark.parametrize(("share", "verdict"), [(0.8, "holds"), (1.0, "does not hold")])
def test_seeds_are_counted(share, verdict):
    assert Threshold("x", "<=", 1.0, share).judge([0.5, 0.5, 0.5, 0.5, 99.0]) == verdict


def test_a_seed_without_a_number_counts_against_it():
    assert Threshold("x", "<=", 1.0, 0.8).judge([0.5, None, 0.5, None, 0.5]) == "does not hold"


def test_a_claim_is_as_good_as_its_worst_threshold():
    assert worst(["holds", "undecided", "does not hold"]) == "does not hold"
    assert worst(["holds", "undecided"]) == "undecided"
    assert worst(["holds", "holds"]) == "holds"


def test_a_threshold_reads_as_a_sentence():
    texts = [str(Threshold("x", "<=", 0.35)), str(Threshold("x", ">", 1, 0.8)), str(Threshold("x", "<", 1e-6, 1.0))]
    assert texts == ["<= 0.35", "> 1, 80% of the seeds", "< 1e-06, every seed"]
