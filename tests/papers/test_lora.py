"""LoRA through the stream: one block, which every task goes on training."""

from __future__ import annotations

import torch
from digit_runs import lower_half, read_json, snapshots

from rankwise.adapters import banks_of, bare
from rankwise.models import fingerprint


def test_one_block_stays_live_through_the_stream(digits):
    run = digits("lora")
    assert lower_half(run.results["matrix"]) and len(run.results["matrix"]) == 3
    for site, bank in banks_of(run.model).values():
        assert [(block.size, block.live) for block in bank.blocks] == [(8, True)]
        assert bank.live["A"].shape == (8, site.n_in) and bank.live["B"].shape == (site.n_out, 8)


def test_every_task_moves_the_same_factors(digits):
    first, second, third = snapshots(digits("lora").path)
    names = [name for name in first if name.startswith("sites/") and ".B" in name]
    assert names
    for name in names:
        assert name.endswith("live.B") and first[name].norm() > 0
        assert not torch.equal(first[name], second[name]) and not torch.equal(second[name], third[name])


def test_the_base_under_it_is_untouched(digits):
    run = digits("lora")
    with bare(run.model) as base:
        assert fingerprint(base) == read_json(run.path, "environment.json")["base"]["fingerprint"]
    assert not (run.path / "adapter" / "base.safetensors").exists()


def test_the_trained_parameters_are_those_of_the_formula_and_the_heads_rows(digits):
    run = digits("lora")
    adapter = sum(8 * (site.n_in + site.n_out) for site, _ in banks_of(run.model).values())
    assert run.results["trainable_parameters"] == adapter + 2 * 128  # the last task has two classes
