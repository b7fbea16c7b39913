"""LoRA with a frozen block for each task: blocks are summed, and an old one never changes again."""

from __future__ import annotations

import torch
from digit_runs import lower_half, snapshots, stored

from rankwise.adapters import banks_of


def test_there_is_a_block_for_each_task_and_only_the_last_is_live(digits):
    run = digits("lora-append")
    assert lower_half(run.results["matrix"])
    for _, bank in banks_of(run.model).values():
        assert bank.labels == tuple(run.results["tasks"])
        assert [block.live for block in bank.blocks] == [False, False, True]
        assert [block.size for block in bank.blocks] == [8, 8, 8]


def test_old_blocks_keep_their_bits(digits):
    run = digits("lora-append")
    ends, last = snapshots(run.path), stored(run.path, "adapter.safetensors")
    sites = [name for name, _ in banks_of(run.model).items()]
    assert sites
    for site in sites:
        for t, end in enumerate(ends[:-1]):
            old = slice(8 * t, 8 * t + 8)
            assert torch.equal(last[f"{site}/frozen.A"][old], end[f"sites/{site}/live.A"])
            assert torch.equal(last[f"{site}/frozen.B"][:, old], end[f"sites/{site}/live.B"])
            assert end[f"sites/{site}/live.B"].norm() > 0


def test_moments_exist_for_the_live_block_alone(digits):
    run = digits("lora-append")
    sites = len(banks_of(run.model))
    for end in snapshots(run.path):
        moments = [m for name, m in end.items() if name.startswith("optimizer/base.") and name.endswith("exp_avg")]
        assert len(moments) == 2 * sites and all(8 in moment.shape for moment in moments)


def test_growth_can_be_taken_back_in_the_config(digits):
    kept = digits("lora-append", adapter={"growth": "keep"})
    assert kept.results["matrix"] == digits("lora").results["matrix"]
