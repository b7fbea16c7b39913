"""The frozen base: a run trains class rows and nothing else."""

from __future__ import annotations

import torch
from digit_runs import lower_half, read_json, snapshots, stored

from rankwise.adapters import is_adapted
from rankwise.models import fingerprint


def test_the_base_keeps_its_bits(digits):
    run = digits("linear-probe")
    assert lower_half(run.results["matrix"]) and not is_adapted(run.model)
    assert fingerprint(run.model) == read_json(run.path, "environment.json")["base"]["fingerprint"]
    assert not any(p.requires_grad for p in run.model.parameters())
    assert sorted(file.name for file in (run.path / "adapter").glob("*.safetensors")) == ["head.safetensors"]


def test_only_the_rows_of_the_task_learn(digits):
    run = digits("linear-probe")
    first, second, third = snapshots(run.path)
    assert {name.split("/")[0] for name in first} == {"head", "objective", "optimizer"}
    assert torch.equal(second["head/frozen.weight"], first["head/live.weight"])
    assert torch.equal(third["head/frozen.weight"][:4], first["head/live.weight"])
    assert run.results["trainable_parameters"] == 2 * 128


def test_the_head_answers(digits):
    run = digits("linear-probe")
    assert read_json(run.path, "adapter/head.json")["settings"]["predict"] == "head"
    assert run.results["matrix"][-1][-1] > 0.5


def test_a_linear_head_has_a_row_and_a_bias_a_class(digits):
    run = digits("linear-probe", objective={"head": "linear"})
    held = stored(run.path, "head.safetensors")
    assert held["head.frozen.weight"].shape == (8, 128) and held["head.live.bias"].shape == (2,)
    assert run.results["trainable_parameters"] == 2 * (128 + 1)
