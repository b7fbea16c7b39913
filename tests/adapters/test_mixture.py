"""Mixtures: the softmax over the best, and where it prunes; the gate that uses all of it: tests/papers/test_mora.py."""

from __future__ import annotations

import pytest
import torch

from rankwise.adapters.mixture import Mixture, pruned, top_softmax
from rankwise.config import parse_record
from rankwise.errors import UsageError

SCORES = torch.tensor([[0.5, -0.1, 0.4, 0.3], [0.0, 0.9, 0.1, -0.4]])


def test_the_best_share_a_softmax_and_the_others_have_none():
    w = top_softmax(SCORES, 2, 0.5)
    assert w[0, [1, 3]].tolist() == [0, 0] and w[1, [0, 3]].tolist() == [0, 0]
    torch.testing.assert_close(w[0, [0, 2]], torch.softmax(torch.tensor([1.0, 0.8]), 0))
    torch.testing.assert_close(top_softmax(SCORES, 4), torch.softmax(SCORES, -1))


def test_what_scores_below_the_cut_is_pruned_and_nothing_is_put_in_its_place():
    w = torch.full_like(SCORES, 0.25)
    assert pruned(w, SCORES, 0.4).count_nonzero(1).tolist() == [2, 1] and pruned(w, SCORES, None) is w


def test_the_cut_counts_in_units_of_the_pool_where_it_is_told_to():
    assert Mixture(threshold=0.6).cut(9) == 0.6
    assert Mixture(threshold=0.6, threshold_unit="pool").cut(9) == pytest.approx(0.2)


def test_blocks_are_mixed_by_the_sums_of_their_scores():
    mixture = Mixture(top_k=2, temperature=1.0, level="block", selection="all", threshold=0.5)
    sums = torch.stack([SCORES[:, :3].sum(1), SCORES[:, 3]], 1)
    w = torch.softmax(sums, -1)
    torch.testing.assert_close(mixture.mix(SCORES, (3, 1), prune=False), w[:, [0, 0, 0, 1]])
    torch.testing.assert_close(mixture.mix(SCORES, (3, 1), prune=True), (w * (sums >= 0.5))[:, [0, 0, 0, 1]])


@pytest.mark.parametrize("wrong", [{"top_k": 0}, {"temperature": 0.0}])
def test_settings_outside_their_range_are_refused(wrong):
    with pytest.raises(UsageError, match=f"gate.{next(iter(wrong))} = 0"):
        parse_record(Mixture, wrong, "gate")
