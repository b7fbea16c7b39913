"""rsLoRA: the same factors as LoRA, with a factor of sqrt(rank) on their product."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn

from rankwise.adapters import adapter_of, banks_of
from rankwise.api import adapt, export


def update(method: str, rank: int, scale: float) -> torch.Tensor:
    model = adapt(nn.Sequential(nn.Linear(12, 9)), method, rank=rank, scale=scale)
    ((site, bank),) = banks_of(model).values()
    with torch.no_grad():
        bank.live["B"].fill_(0.1)
        return adapter_of(model).branch.dense(bank.view(), site, lambda: torch.zeros(9, 12))


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_its_update_is_loras_times_the_root_of_the_rank(rank):
    torch.testing.assert_close(update("rslora", rank, 0.5), update("lora", rank, 0.5) * math.sqrt(rank))


def test_alpha_leaves_for_peft_such_that_alpha_over_rank_is_the_scale(tmp_path):
    model = adapt(nn.Sequential(nn.Linear(12, 9)), "rslora", rank=4, scale=0.5)
    export(model, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["lora_alpha"] / config["r"] == pytest.approx(0.5 * 2) and not config.get("use_rslora")
