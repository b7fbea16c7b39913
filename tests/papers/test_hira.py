"""HiRA: the weight itself times a low-rank matrix."""

from __future__ import annotations

import pytest
import torch
from shapes import acts_as, drawn, layer, rank_of, tensors, update
from torch import nn

from rankwise.api import export, merge
from rankwise.errors import UsageError


def test_the_update_is_the_base_times_the_pair_elementwise():
    model, weight = drawn("hira", 14, 12, 3, blocks=2, scale=0.5), layer(14, 12)[0].weight.detach()
    t = tensors(model)
    wanted = weight * (0.5 * t["B"] @ t["A"])  # pyright: ignore[reportOperatorIssue]
    torch.testing.assert_close(update(model), wanted)
    assert acts_as(model, wanted)


def test_its_rank_is_above_that_of_the_factors():
    assert rank_of(update(drawn("hira", 30, 24, 2))) == 24


def test_it_reads_the_weight_as_it_is_now():
    model = drawn("hira", 14, 12, 3)
    before = update(model)
    with torch.no_grad():
        model.get_parameter("0.base.weight").mul_(2)
    torch.testing.assert_close(update(model), 2 * before)
    assert acts_as(model, 2 * before)


def test_blocks_are_folded_together_or_not_at_all():
    model = drawn("hira", 14, 12, 3, blocks=2)
    with pytest.raises(UsageError, match="act together"):
        merge(model, blocks=["1"])
    x = torch.randn(5, 14)
    with torch.no_grad():
        wanted = model(x)
        plain = merge(model)
        assert isinstance(plain[0], nn.Linear)  # pyright: ignore[reportIndexIssue]
        torch.testing.assert_close(plain(x), wanted, rtol=1e-5, atol=1e-5)


def test_it_is_no_lora(tmp_path):
    with pytest.raises(UsageError, match="high rank"):
        export(drawn("hira", 14, 12, 3), tmp_path)
