"""LoHa: a product of two low-rank matrices at the level of the weight, with rank up to rank^2."""

from __future__ import annotations

import pytest
import torch
from shapes import acts_as, drawn, layer, only, rank_of, tensors, update

from rankwise.api import adapt, export
from rankwise.errors import UsageError


def test_the_update_is_the_elementwise_product_and_acts_as_that_matrix():
    model = drawn("loha", 14, 12, 3, scale=0.5)
    t = tensors(model)
    wanted = 0.5 * (t["B1"] @ t["A1"]) * (t["B2"] @ t["A2"])
    torch.testing.assert_close(update(model), wanted)
    assert acts_as(model, wanted)


def test_blocks_are_multiplied_each_by_itself_and_then_added():
    model = drawn("loha", 14, 12, 2, blocks=2)
    t = tensors(model)
    parts = [(t["B1"][:, i] @ t["A1"][i]) * (t["B2"][:, i] @ t["A2"][i]) for i in (slice(0, 2), slice(2, 4))]
    torch.testing.assert_close(update(model), parts[0] + parts[1])
    assert acts_as(model, parts[0] + parts[1])


def test_its_rank_is_up_to_the_square_of_the_rank():
    assert rank_of(update(drawn("loha", 30, 24, 3))) == 9
    assert rank_of(update(drawn("loha", 6, 24, 3))) == 6


def test_one_factor_alone_starts_at_zero_so_there_is_a_gradient():
    model = adapt(layer(14, 12), "loha", rank=3)
    _, bank = only(model)
    zero = [name for name, p in bank.live.items() if not p.detach().any()]
    model(torch.randn(5, 14)).square().sum().backward()
    assert zero == ["B2"] and bank.live["B2"].grad is not None and bank.live["B2"].grad.norm() > 0


def test_it_is_no_lora_and_has_its_own_start(tmp_path):
    with pytest.raises(UsageError, match="no product of two thin factors"):
        export(drawn("loha", 14, 12, 3), tmp_path)
    with pytest.raises(UsageError, match="gaussian.*own"):
        adapt(layer(14, 12), "loha", init="gaussian")
