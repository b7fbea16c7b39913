"""Full fine-tuning: the base itself learns, and is what a run leaves behind."""

from __future__ import annotations

import pytest
import torch
from digit_runs import lower_half, read_json, snapshots, stored

from rankwise.adapters import is_adapted, store
from rankwise.errors import ConflictError, StorageError
from rankwise.models import fingerprint, load_backbone


def test_every_weight_of_the_base_learns(digits):
    run = digits("finetune")
    assert lower_half(run.results["matrix"]) and not is_adapted(run.model)
    before = dict(load_backbone("embedded:vit").module.named_parameters())
    same = [name for name, p in run.model.named_parameters() if torch.equal(p, before[name])]
    assert same == []
    assert run.results["trainable_parameters"] == sum(p.numel() for p in before.values()) + 2 * 128


def test_the_base_goes_on_learning_in_every_task(digits):
    first, second, third = snapshots(digits("finetune").path)
    names = [name for name in first if name.startswith("base/") and name.endswith("weight")]
    assert names and all(not torch.equal(first[name], second[name]) for name in names)
    assert all(not torch.equal(second[name], third[name]) for name in names)


def test_the_learnt_base_is_stored_as_it_is(digits):
    run = digits("finetune")
    held = stored(run.path, "base.safetensors")
    now = run.model.state_dict()
    assert held.keys() == now.keys() and all(torch.equal(held[name], now[name]) for name in held)
    assert fingerprint(run.model) != read_json(run.path, "environment.json")["base"]["fingerprint"]
    with pytest.raises(StorageError, match="holds no adapter"):
        store.read(run.path / "adapter")


def test_a_setting_of_an_adapter_is_refused_by_name(digits):
    with pytest.raises(ConflictError, match=r"adapter\.growth and method 'finetune'"):
        digits("finetune", adapter={"growth": "append"})
