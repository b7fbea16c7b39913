"""O-LoRA: blocks grow as in lora-append, and the new keys stay clear of the old ones."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from digit_runs import snapshots
from torch import nn

from rankwise.adapters import Change, banks_of, grow
from rankwise.api import adapt, merge, resolve
from rankwise.papers.o_lora import METHOD


def test_its_recipe_is_a_growing_lora_with_the_penalty():
    config, method = resolve({"method": "o-lora"})
    assert method is METHOD and method.growth == "append" and config.adapter.scale == 4.0
    assert config.strategy == [{"kind": "orthogonal", "lambda1": [0.5], "lambda2": [0.0]}]


def test_the_scale_is_that_of_one_block_however_many_there_are():
    model = adapt(nn.Sequential(nn.Linear(6, 5, bias=False)), "o-lora", rank=2)
    (_, bank), *_ = banks_of(model).values()
    x, expected = torch.randn(3, 6), model.get_parameter("0.base.weight").detach().clone()
    for task in range(3):
        if task:
            grow(model, [Change("freeze"), Change("append", f"task {task}", 2)], 0)
        nn.init.normal_(bank.live["B"])
        expected += 4.0 * bank.live["B"].detach() @ bank.live["A"].detach()
    torch.testing.assert_close(model(x), x @ expected.T, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(merge(model).get_parameter("0.weight"), expected, rtol=1e-5, atol=1e-5)


def test_old_blocks_keep_their_bits_and_all_are_stored(digits):
    states = snapshots(digits("o-lora").path)
    names = [name for name in states[0] if name.endswith(".A") and name.startswith("sites/")]
    rows = [states[t][names[0].replace("live", "frozen") if t else names[0]].shape[0] for t in range(3)]
    assert rows == [8, 8, 16] and len(names) > 4  # one task's block lies in the frozen half when the next has begun
    for earlier, later in pairwise(states[1:]):
        for name, tensor in earlier.items():
            if ".frozen." in name or "/frozen." in name:
                dim = 1 if name.endswith(".B") else 0
                if name.startswith("sites/"):
                    assert torch.equal(later[name].narrow(dim, 0, tensor.shape[dim]), tensor), name


@pytest.mark.parametrize("weight", [0.0, 5.0])
def test_the_penalty_lowers_the_overlap(digits, weight):
    run = digits("o-lora", strategy=[{"kind": "orthogonal", "lambda1": [weight]}], train={"lr": 1e-2})
    found = overlap_of(run)
    assert (
        found > 0.05
        if weight == 0.0
        else found
        < 0.5 * overlap_of(digits("o-lora", strategy=[{"kind": "orthogonal", "lambda1": [0.0]}], train={"lr": 1e-2}))
    )


def overlap_of(run) -> float:
    """Return the mean |cos| between keys of the last block and those of the others."""
    found = []
    for _, bank in banks_of(run.model).values():
        keys = nn.functional.normalize(bank.tensor("A").detach(), dim=1)
        found.append((keys[16:] @ keys[:16].T).abs().mean())
    return float(torch.stack(found).mean())
