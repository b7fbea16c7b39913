"""LoRA+: two learning rates, in a fixed ratio through the whole schedule."""

from __future__ import annotations

import pytest
import torch

import rankwise
from rankwise.adapters import banks_of
from rankwise.errors import ConflictError, UsageError


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_the_up_factors_rate_is_the_ratio_times_the_others_in_every_step(digits, monkeypatch, optimizer):
    rates: list[tuple[float, ...]] = []
    kind = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}[optimizer]
    step = kind.step

    def watched(rule, *args):
        rates.append(tuple(group["lr"] for group in rule.param_groups))
        return step(rule, *args)

    monkeypatch.setattr(kind, "step", watched)
    run = digits(
        "lora-plus",
        stream={"first_tasks": 1},
        adapter={"dynamics": {"ratio": 4.0}},
        train={"optimizer": optimizer, "lr": 1e-3, "schedule": "linear"},
    )
    slow, fast = zip(*(pair for pair in rates if len(pair) == 2), strict=True)  # the head's rule has one group
    assert slow == pytest.approx([1e-3, 8e-4, 6e-4, 4e-4, 2e-4]) and fast == pytest.approx([4 * lr for lr in slow])
    assert all(bank.tensor("B").norm() > 0 for _, bank in banks_of(run.model).values())


def test_it_differs_from_lora_by_the_ratio_alone(digits):
    plain = digits("lora", stream={"first_tasks": 1}, train={"lr": 3e-4})
    same = digits("lora-plus", stream={"first_tasks": 1}, adapter={"dynamics": {"ratio": 1.0}})
    other = digits("lora-plus", stream={"first_tasks": 1})
    values = [
        torch.cat([bank.tensor(n).flatten() for _, bank in banks_of(run.model).values() for n in "AB"])
        for run in (plain, same, other)
    ]
    assert torch.equal(values[0], values[1]) and not torch.equal(values[0], values[2])


def test_a_ratio_that_is_not_positive_is_refused(tmp_path):
    config = {"method": "lora-plus", "adapter": {"dynamics": {"ratio": 0.0}}, "stream": {"name": "digits"}}
    with pytest.raises(UsageError, match="ratio"):
        rankwise.run(config, out=tmp_path / "run")


def test_a_branch_without_an_up_factor_that_learns_is_refused(tmp_path):
    adapter = {"dynamics": {"kind": "lora-plus"}, "form": {"fixed": ["B"]}}
    config = {"method": "lora", "model": {"name": "embedded:vit"}, "stream": {"name": "digits"}, "adapter": adapter}
    with pytest.raises(ConflictError, match="up factors"):
        rankwise.run(config, out=tmp_path / "run")
