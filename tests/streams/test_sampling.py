from __future__ import annotations

import numpy as np
import pytest
import torch

from rankwise.errors import ConflictError, DataError
from rankwise.streams.sampling import Sampling, balanced, draw, generator, permutation, stratified, training_rows

LABELS = np.array([0] * 50 + [1] * 30 + [2] * 20)[np.random.default_rng(0).permutation(100)]
NAMES = ("a", "b", "c")
KNOWN = [7, 8, 1, 0, 9, 2, 4, 6, 3, 5]


def counts(rows, labels=LABELS):
    return np.bincount(labels[rows], minlength=3).tolist()


def test_draw_takes_exactly_the_quota_without_repeats_in_row_order():
    rows = draw(LABELS, np.array([7, 0, 20]), generator(1, "x"))
    assert counts(rows) == [7, 0, 20]
    assert (np.diff(rows) > 0).all()


def test_stratified_follows_the_shares():
    assert counts(stratified(LABELS, 20, generator(1, "x"))) == [10, 6, 4]
    assert counts(stratified(LABELS, 33, generator(1, "x"))) == [16, 10, 7]


def test_stratified_leaves_the_rows_to_keep():
    assert counts(stratified(LABELS, 99, generator(1, "x"))) == [49, 29, 19]
    assert counts(stratified(LABELS, 60, generator(1, "x"), keep=16)) == [34, 14, 4]


def test_balanced_is_even_and_fills_from_larger_classes():
    assert counts(balanced(LABELS, 30, generator(1, "x"))) == [10, 10, 10]
    assert counts(balanced(LABELS, 80, generator(1, "x"))) == [30, 30, 20]
    uneven = counts(balanced(LABELS, 31, generator(1, "x")))
    assert sorted(uneven) == [10, 10, 11]
    assert len(balanced(LABELS, 1000, generator(1, "x"))) == 100


def test_draws_depend_on_seed_and_purpose_only():
    torch.manual_seed(3)
    np.random.seed(3)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    first = balanced(LABELS, 30, generator(1, "x"))
    torch.rand(5)
    assert np.array_equal(first, balanced(LABELS, 30, generator(1, "x")))
    assert not np.array_equal(first, balanced(LABELS, 30, generator(2, "x")))
    assert not np.array_equal(first, balanced(LABELS, 30, generator(1, "y")))
    torch.set_rng_state(before[0])
    permutation(10, 1, "order")
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])


def test_known_order_stays_the_same_across_versions():
    assert permutation(10, 1, "order", "classes") == KNOWN
    assert sorted(permutation(10, 7, "order")) == list(range(10))


@pytest.mark.parametrize(
    ("sampling", "train", "validation"),
    [
        (Sampling(), 100, 0),
        (Sampling(validation=0.2), 80, 20),
        (Sampling(validation=10), 90, 10),
        (Sampling(validation=0.2, train_limit=30), 30, 6),
        (Sampling(validation=0.25, shots=16), 48, 12),
        (Sampling(train_limit=500), 100, 0),
    ],
)
def test_sizes_of_train_and_validation(sampling, train, validation):
    rows, held_out = training_rows(LABELS, sampling, 1, "t", NAMES)
    assert (len(rows), len(held_out)) == (train, validation)
    assert not set(rows) & set(held_out)


def test_shots_are_exact_even_where_validation_takes_rows():
    for seed in range(5):
        rows, _ = training_rows(LABELS, Sampling(shots=16, validation=4), seed, "t", NAMES)
        assert counts(rows) == [16, 16, 16]
        rows, held_out = training_rows(LABELS, Sampling(shots=18, validation=0.5), seed, "t", NAMES)
        assert counts(rows) == [18, 18, 18] and counts(held_out)[2] == 2 and len(held_out) == 27


@pytest.mark.parametrize(
    ("sampling", "said"),
    [
        (Sampling(shots=21), "class 'c' has 20 training rows, fewer than shots = 21"),
        (Sampling(train_limit=2), "train_limit = 2 is below its 3 classes"),
        (Sampling(validation=0.001), "asks for 0 rows"),
        (Sampling(validation=99), "asks for 99 rows but 97 of 100"),
    ],
)
def test_what_cannot_be_drawn_is_refused(sampling, said):
    with pytest.raises(DataError, match=f"task 't': .*{said}"):
        training_rows(LABELS, sampling, 1, "t", NAMES)


def test_shots_and_train_limit_exclude_each_other():
    with pytest.raises(ConflictError, match="cannot be given together"):
        Sampling(shots=1, train_limit=3)
