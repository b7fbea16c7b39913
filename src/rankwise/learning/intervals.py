"""Intervals over seeds by the bootstrap, and differences between methods, paired where they share seeds.

The percentile bootstrap (Efron 1979) resamples the seeds with replacement. With few seeds it is too narrow: with three
its 95 % interval runs from the smallest to the largest value, which holds the true mean in 75 % of all cases (symmetric
noise: 1 - 2 / 2^3). Student's interval (`metrics.mean_interval`) is the wider and safer one then.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rankwise.errors import DataError
from rankwise.learning.metrics import Interval
from rankwise.seeds import generator

if TYPE_CHECKING:
    from torch import Tensor

DRAWS = 10_000
"""Resamples of one interval: its ends are known to about a hundredth of its width."""


@dataclass(frozen=True)
class Difference:
    """A minus B, in the unit of the scores."""

    interval: Interval
    """Of the mean difference; n is the number of pairs, or of the values of the smaller side where nothing pairs."""
    seeds: tuple[int, ...]
    """Seeds that both sides have; empty: unpaired."""
    higher: int
    """Pairs in which A is higher."""


def bootstrap_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """Return the mean of `values` with its percentile-bootstrap interval; without ends for a single value.

    Equal values give equal intervals, in any order: the resamples are a function of how many values there are.

    >>> interval = bootstrap_interval([0.70, 0.72, 0.74])
    >>> [round(x, 2) for x in interval[:3]]
    [0.72, 0.7, 0.74]
    """
    _check(values, level)
    return _interval([sorted(values)], level)


def difference(a: Mapping[int, float], b: Mapping[int, float], level: float = 0.95) -> Difference:
    """Compare two methods by their scores per seed: A minus B, seed by seed where they share any, else mean by mean.

    Seeds that only one side has are left out of a paired comparison.
    """
    shared = tuple(sorted(a.keys() & b.keys()))
    if shared:
        gains = [a[seed] - b[seed] for seed in shared]
        return Difference(bootstrap_interval(gains, level), shared, sum(gain > 0 for gain in gains))
    _check([*a.values(), *b.values()], level)
    return Difference(_interval([sorted(a.values()), [-value for value in sorted(b.values())]], level), (), 0)


def _interval(scores: Sequence[Sequence[float]], level: float) -> Interval:
    """Return the sum of the means of independent samples of `scores`, each resampled on its own."""
    import torch  # here: a comparison that is misspelt is told without it

    samples = [torch.tensor(values, dtype=torch.float64) for values in scores]
    mean, n = sum(float(sample.mean()) for sample in samples), min(len(sample) for sample in samples)
    if n == 1:
        return Interval(mean, None, None, n)
    means = torch.stack([_resampled(sample, i) for i, sample in enumerate(samples)]).sum(0)
    ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    low, high = torch.quantile(means, ends).tolist()
    return Interval(mean, low, high, n)


def _resampled(sample: Tensor, side: int) -> Tensor:
    """Return the means [DRAWS] of resamples of `sample` [n]."""
    import torch

    draws = torch.randint(len(sample), (DRAWS, len(sample)), generator=generator(0, "bootstrap", side, len(sample)))
    return sample[draws].mean(1)


def _check(values: Sequence[float], level: float) -> None:
    if not values:
        raise DataError("an interval needs at least one value")
    if not 0.0 < level < 1.0:
        raise DataError(f"level = {level!r}; give a share between 0 and 1, e.g. 0.95")
