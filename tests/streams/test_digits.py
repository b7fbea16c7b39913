from __future__ import annotations

import torch

from rankwise.streams.digits import digits

FIRST_TEST_IDS = [9, 11, 12, 28, 32]


def test_digits_are_cut_the_same_way_always():
    train, test, cut = digits()
    again = digits()[1]
    assert (len(train), len(test), cut["rows"]) == (1397, 400, 400)
    assert torch.equal(test.ids, again.ids)
    assert sorted([*train.ids.tolist(), *test.ids.tolist()]) == list(range(1797))
    assert test.ids[:5].tolist() == FIRST_TEST_IDS


def test_digits_are_bytes_and_stratified():
    train, test, _ = digits()
    assert train.inputs.dtype == torch.uint8 and train.inputs.shape[1:] == (8, 8)
    assert train.inputs.max() == 255 and train.inputs.min() == 0
    assert set(torch.unique(train.inputs).tolist()) == {round(v * 255 / 16) for v in range(17)}
    per_class = torch.bincount(torch.tensor(list(test.labels)))
    assert per_class.sum() == 400 and per_class.min() >= 38 and per_class.max() <= 41
    assert len(train.files[0]["sha256"]) == 64
