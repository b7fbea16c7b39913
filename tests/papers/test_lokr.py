"""LoKr: the Kronecker product, its sizes and its rank."""

from __future__ import annotations

import pytest
import torch
from shapes import acts_as, drawn, layer, only, rank_of, tensors, update

from rankwise.api import adapt
from rankwise.errors import UsageError
from rankwise.papers.lokr import Kronecker, divisor


@pytest.mark.parametrize("decompose", ["large", "small"])
def test_the_update_is_the_kronecker_product_and_acts_as_that_matrix(decompose):
    model = drawn("lokr", 12, 20, 2, scale=0.5, form={"decompose": decompose})
    t = tensors(model)
    core, pair = t["C"][0], t["B"] @ t["A"]
    assert (core.shape, pair.shape) == {"large": ((4, 3), (5, 4)), "small": ((5, 4), (4, 3))}[decompose]
    wanted = 0.5 * (torch.kron(core, pair) if decompose == "large" else torch.kron(pair, core))
    torch.testing.assert_close(update(model), wanted)
    assert acts_as(model, wanted)


def test_its_rank_is_the_product_of_both_ranks():
    model = drawn("lokr", 36, 36, 2)
    assert rank_of(tensors(model)["C"][0]) == 6 and rank_of(update(model)) == 12


def test_each_block_has_a_core_of_its_own():
    model = drawn("lokr", 12, 20, 2, blocks=2)
    t = tensors(model)
    assert t["C"].shape == (2, 4, 3) and not torch.equal(t["C"][0], t["C"][1])
    wanted = sum(torch.kron(t["C"][i], t["B"][:, 2 * i : 2 * i + 2] @ t["A"][2 * i : 2 * i + 2]) for i in range(2))
    torch.testing.assert_close(update(model), wanted)


@pytest.mark.parametrize(("size", "most", "found"), [(128, 32, 8), (128, 4, 4), (7, 32, 1), (36, 32, 6), (1, 8, 1)])
def test_sides_of_the_small_matrix_divide_the_sizes(size, most, found):
    assert divisor(size, most) == found


def test_between_prime_sizes_it_is_a_scaled_lora():
    model = drawn("lokr", 7, 5, 2)
    t = tensors(model)
    torch.testing.assert_close(update(model), t["C"][0, 0, 0] * t["B"] @ t["A"])


def test_it_starts_silent_with_core_and_down_factor_drawn():
    model = adapt(layer(12, 20), "lokr", rank=2)
    _, bank = only(model)
    assert not bank.live["B"].detach().any() and bank.live["A"].detach().all() and bank.live["C"].detach().all()
    with pytest.raises(UsageError, match="orthogonal.*own"):
        adapt(layer(12, 20), "lokr", init="orthogonal")
    assert Kronecker().most == 32
