"""VeRA: one shared random pair, two learned vectors a site."""

from __future__ import annotations

import pytest
import torch
from digit_runs import snapshots
from safetensors.torch import load_file
from shapes import acts_as, drawn, layer, rank_of, tensors, update
from torch import nn

from rankwise.adapters import Change, adapter_of, banks_of, grow
from rankwise.api import adapt, save
from rankwise.errors import UsageError

RANK = 6


def two_layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(14, 12), nn.Linear(12, 30))


def test_the_update_is_the_shared_pair_between_two_diagonals():
    model = drawn("vera", 14, 12, RANK, scale=0.5)
    t, shared = tensors(model), adapter_of(model).shared.tensors()
    wanted = 0.5 * torch.diag(t["b"][0]) @ shared["B"] @ torch.diag(t["d"]) @ shared["A"]
    torch.testing.assert_close(update(model), wanted)
    assert acts_as(model, wanted) and rank_of(wanted) == RANK


def test_blocks_share_the_pair_and_add_up():
    model = drawn("vera", 14, 12, RANK, blocks=2)
    t, shared = tensors(model), adapter_of(model).shared.tensors()
    parts = [
        torch.diag(t["b"][i]) @ shared["B"] @ torch.diag(t["d"][RANK * i : RANK * i + RANK]) @ shared["A"]
        for i in range(2)
    ]
    torch.testing.assert_close(update(model), parts[0] + parts[1])
    assert acts_as(model, parts[0] + parts[1])


def test_there_is_one_pair_for_all_sites_cut_to_their_shapes_and_stored_once(tmp_path):
    model = adapt(two_layers(), "vera", rank=RANK)
    shared = adapter_of(model).shared.tensors()
    assert (shared["A"].shape, shared["B"].shape) == ((RANK, 14), (30, RANK))
    for _, bank in banks_of(model).values():
        held = bank.view().shared
        assert all(held[name].data_ptr() == shared[name].data_ptr() for name in "AB")
        assert {name: tuple(p.shape) for name, p in bank.live.items()}["d"] == (RANK,)
    assert not any(p.shape == shared["A"].shape for p in model.parameters() if p.requires_grad)
    save(model, tmp_path / "saved")
    stored = load_file(str(tmp_path / "saved" / "adapter.safetensors"))
    assert sum(tensor.shape in (shared["A"].shape, shared["B"].shape) for tensor in stored.values()) == 2


def test_it_starts_silent_with_a_random_pair_and_d_at_a_tenth():
    model = adapt(layer(14, 12), "vera", rank=RANK)
    t, shared = tensors(model), adapter_of(model).shared.tensors()
    assert not t["b"].any() and torch.equal(t["d"], torch.full((RANK,), 0.1))
    assert shared["A"].all() and shared["B"].all()
    torch.testing.assert_close(shared["B"].abs().max(), torch.tensor(1.0), rtol=0.1, atol=0)  # sqrt(6 / rank)


def test_a_run_keeps_the_pair_to_the_bit_and_trains_the_vectors(digits):
    run = digits("vera", adapter={"rank": 16}, stream={"first_tasks": 2})
    first, second = snapshots(run.path)
    pair = [name for name in first if name.startswith("shared/")]
    vectors = [name for name in first if name.startswith("sites/")]
    assert len(pair) == 2 and all(torch.equal(first[name], second[name]) for name in pair)
    assert vectors and not any(torch.equal(first[name], second[name]) for name in vectors)
    learns = sum(16 + site.n_out for site, _ in banks_of(run.model).values())
    assert run.results["trainable_parameters"] == learns + 4 * 128


def test_a_later_block_cannot_have_more_ranks_than_the_pair():
    model = adapt(layer(14, 12), "vera", rank=2)
    grow(model, [Change("append", "2", 3)], 0)
    with pytest.raises(UsageError, match="drawn with 2"):
        model(torch.randn(1, 14))
