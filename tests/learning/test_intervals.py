from __future__ import annotations

import itertools
import math
import random
import statistics

import pytest

from rankwise.errors import DataError
from rankwise.learning.intervals import bootstrap_interval, difference


def exact(values: list[float], level: float = 0.95) -> tuple[float, float]:
    """The bootstrap written a second way: all n^n resamples instead of drawn ones."""
    means = sorted(statistics.fmean(sample) for sample in itertools.product(values, repeat=len(values)))
    cut = (1 - level) / 2
    return means[math.ceil(cut * len(means)) - 1], means[math.ceil((1 - cut) * len(means)) - 1]


@pytest.mark.parametrize("values", [[0.7, 0.72, 0.77], [0.5, 0.9], [0.1, 0.2, 0.4, 0.7, 0.75], [3.0, 3.0, 3.0]])
def test_drawn_resamples_agree_with_all_of_them(values):
    found = bootstrap_interval(values)
    low, high = exact(values)
    spread = max(values) - min(values)
    assert (found.mean, found.n) == (pytest.approx(statistics.fmean(values)), len(values))
    assert (found.low, found.high) == (pytest.approx(low, abs=0.04 * spread), pytest.approx(high, abs=0.04 * spread))


def test_many_seeds_give_the_normal_interval():
    draw = random.Random(0)
    values = [draw.gauss(0.8, 0.1) for _ in range(400)]
    found = bootstrap_interval(values)
    half = 1.96 * statistics.stdev(values) / 20
    assert found.low is not None and found.high is not None
    assert (found.mean - found.low, found.high - found.mean) == (pytest.approx(half, rel=0.1),) * 2
    narrow = bootstrap_interval(values, 0.5)
    assert narrow.low is not None and narrow.low > found.low


def test_the_order_of_seeds_does_not_matter_and_one_seed_has_no_interval():
    assert bootstrap_interval([0.3, 0.1, 0.2]) == bootstrap_interval([0.2, 0.3, 0.1])
    assert bootstrap_interval([0.3]) == (0.3, None, None, 1)


def test_pairs_take_out_what_seeds_share():
    """Two methods that differ by 0.01 at each seed, while the seeds themselves differ by 0.3."""
    ours, theirs = {0: 0.51, 1: 0.81, 2: 0.66}, {1: 0.80, 0: 0.50, 2: 0.65, 3: 0.2}
    paired = difference(ours, theirs)
    assert paired.seeds == (0, 1, 2)
    assert paired.higher == 3
    assert (paired.interval.low, paired.interval.high) == (pytest.approx(0.01), pytest.approx(0.01))
    unpaired = difference(ours, {seed + 10: value for seed, value in theirs.items()})
    assert (unpaired.seeds, unpaired.higher, unpaired.interval.n) == ((), 0, 3)
    assert unpaired.interval.mean == pytest.approx(0.66 - 0.5375)
    assert unpaired.interval.low is not None and unpaired.interval.high is not None
    assert unpaired.interval.high - unpaired.interval.low > 0.3


def test_the_sides_of_an_unpaired_difference_are_resampled_apart():
    values = {0: 0.0, 1: 1.0}
    same = difference(values, {10: 0.0, 11: 1.0}).interval
    assert (same.mean, same.low, same.high) == (0.0, -1.0, 1.0)


@pytest.mark.parametrize("level", [0.0, 1.0, 95])
def test_a_level_is_a_share(level):
    with pytest.raises(DataError, match=r"0\.95"):
        bootstrap_interval([0.1, 0.2], level)


def test_nothing_has_no_interval():
    with pytest.raises(DataError, match="at least one"):
        bootstrap_interval([])
    with pytest.raises(DataError, match="at least one"):
        difference({}, {})
