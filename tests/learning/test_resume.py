"""Guarantees 4 and 5: a run stopped anywhere ends as if it had not been; equal configs give equal results."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import rankwise
from rankwise import api, papers
from rankwise.adapters import Identity
from rankwise.learning.learner import Learner
from rankwise.learning.ledger import Ledger
from rankwise.learning.recipe import Method, Phase
from rankwise.learning.results import finish
from rankwise.learning.run import Watch, run

METHODS = ("lora", "mora", "lora-append", "finetune", "linear-probe", "joint", "independent", "replay")
VARIANTS: dict[str, dict[str, Any]] = {
    "dropout": {"adapter": {"dropout": 0.1}},
    "accumulate": {"train": {"accumulate": 2}},
    "epochs": {"train": {"epochs": 1, "batch_size": 6, "workers": 2}},
    "warmup": {"train": {"warmup": 0.4, "schedule": "linear", "clip": 0.1, "weight_decay": 0.1}},
    "linear head": {"objective": {"head": "linear", "classes": "seen", "predict": "head"}},
}


def test_every_method_here_is_tested():
    assert set(METHODS) >= {slug for slug in papers.slugs() if papers.method(slug).paper}


@pytest.mark.parametrize("method", METHODS)
def test_each_step_in_a_sitting_of_its_own(small, tmp_path, method):
    whole = small.run(tmp_path / "whole", method)
    assert small.sittings(tmp_path / "parts", method) > 5
    assert small.left(tmp_path / "parts") == small.left(whole)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("method", ["mora", "replay"])
def test_each_step_in_a_sitting_of_its_own_with(small, tmp_path, method, variant):
    whole = small.run(tmp_path / "whole", method, **VARIANTS[variant])
    small.sittings(tmp_path / "parts", method, **VARIANTS[variant])
    assert small.left(tmp_path / "parts") == small.left(whole)


@pytest.mark.parametrize(
    "method", ["replay", *(pytest.param(m, marks=pytest.mark.slow) for m in METHODS if m != "replay")]
)
def test_resume_from_what_each_instant_left(small, tmp_path, method, copying):
    watch = copying(tmp_path / "whole", tmp_path)
    whole = small.left(small.run(tmp_path / "whole", method, watch))
    assert len(watch.copies) >= 8
    for copy in watch.copies:
        rankwise.resume(copy)
        assert small.left(copy) == whole, copy.name


def two_phases(small, **tables: Any) -> Learner:
    """A learner whose tasks are learnt first by the head alone, then by everything."""
    phases = (Phase("head", 0.5, "head"), Phase("all", 0.5))
    method = Method("two-phases", "", "", "", "", growth="append", phases=phases)
    config, _ = api.resolve(small.config("lora", **tables))
    plain = api.learner_of(config, papers.method("lora"))
    del plain  # only its parts are wanted, fresh ones: the base must not carry an adapter
    from rankwise.models import load_backbone
    from rankwise.objectives import Classify
    from rankwise.learning.processes import Processes
    from rankwise.streams import build

    backbone = load_backbone(**config.model.model_dump())
    stream = build(config.stream.model_dump(exclude_none=True), config.seed)
    objective = Classify(config.objective, backbone.dim, config.seed)
    return Learner(config, method, Identity(), backbone, stream, objective, [], Processes.start(config.train))
