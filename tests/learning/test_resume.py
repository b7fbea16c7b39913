"""Guarantees 4 and 5: a run stopped anywhere ends as if it had not been; equal configs give equal results."""

from __future__ import annotations

import shutil
from dataclasses import replace
from typing import Any

import pytest
import torch

import rankwise
from rankwise import papers
from rankwise.learning.recipe import Phase
from rankwise.learning.step import rate_at

METHODS = papers.slugs()
VARIANTS: dict[str, dict[str, Any]] = {
    "dropout": {"adapter": {"dropout": 0.1}},
    "accumulate": {"train": {"accumulate": 2}},
    "epochs": {"train": {"steps": None, "epochs": 2, "batch_size": 6, "workers": 2}},
    "warmup": {"train": {"warmup": 0.4, "schedule": "linear", "clip": 0.1, "weight_decay": 0.1}},
    "linear head": {"objective": {"head": "linear", "classes": "seen", "predict": "head"}},
}


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
def test_resume_from_what_each_instant_left(small, tmp_path, method):
    watch = small.copying(tmp_path / "whole", tmp_path)
    whole = small.left(small.run(tmp_path / "whole", method, watch))
    assert len(watch.copies) >= 8
    for copy in watch.copies:
        rankwise.resume(copy)
        assert small.left(copy) == whole, copy.name


@pytest.mark.parametrize(("shares", "lengths"), [((0.5, 0.5), [2, 2]), ((0.3, 0.05, 0.65), [1, 0, 3])])
def test_a_method_in_phases(small, tmp_path, monkeypatch, shares, lengths):
    parts = ("head", "adapter", "all")[-len(shares) :]
    phases = tuple(Phase(live, share, live) for live, share in zip(parts, shares, strict=True))
    phased = replace(papers.method("mora"), phases=phases)
    monkeypatch.setattr(papers, "method", lambda slug: phased)
    whole = small.run(tmp_path / "whole", train={"steps": 4})
    rates = [line["rate"] for line in small.events(whole) if line["event"] == "step"]
    expected = [rate_at("cosine", 0.0, step, length) for length in lengths for step in range(length)]
    assert rates == 2 * expected  # the learning rate's course starts anew in each phase
    small.sittings(tmp_path / "parts", "mora", train={"steps": 4})
    assert small.left(tmp_path / "parts") == small.left(whole)


def test_a_phase_moves_only_what_it_says(small, tmp_path, monkeypatch):
    phased = replace(papers.method("lora"), phases=(Phase("head", 1.0, "head"),))
    monkeypatch.setattr(papers, "method", lambda slug: phased)
    held = small.weights(small.run(tmp_path / "head", "lora"))
    assert all(not tensor.any() for name, tensor in held.items() if name.endswith(".B"))
    phased = replace(phased, phases=(Phase("adapter", 1.0, "adapter"),))
    assert any(
        tensor.any() for name, tensor in small.weights(small.run(tmp_path / "b", "lora")).items() if ".B" in name
    )


def test_equal_configs_give_equal_results(small, tmp_path):
    torch.manual_seed(1)
    one = small.left(small.run(tmp_path / "one", "replay", adapter={"dropout": 0.1}))
    torch.manual_seed(2)
    torch.rand(3)
    assert small.left(small.run(tmp_path / "two", "replay", adapter={"dropout": 0.1})) == one
    other = small.run(tmp_path / "other", "replay", adapter={"dropout": 0.1}, seed=1)
    assert small.left(other)["adapter"] != one["adapter"]
    assert small.losses(other) != small.losses(tmp_path / "one")


def test_workers_do_not_matter(small, tmp_path):
    none = small.left(small.run(tmp_path / "none"))
    two = small.left(small.run(tmp_path / "two", train={"workers": 2}))
    assert two == none


def test_how_often_snapshots_are_written_does_not_matter(small, tmp_path):
    often = small.left(small.run(tmp_path / "often"))
    assert small.left(small.run(tmp_path / "seldom", train={"snapshot_seconds": 1000})) == often


def test_a_finished_run_is_written_out_again(small, tmp_path):
    done = small.run(tmp_path / "run", "replay")
    before = small.left(done)
    shutil.rmtree(done / "adapter")
    (done / "results.json").unlink()
    (done / "matrix.csv").unlink()
    rankwise.resume(done)
    assert small.left(done) == before


def test_few_snapshots_are_kept_within_a_task_and_all_at_task_ends(small, tmp_path):
    small.run(tmp_path / "run", train={"steps": 6})
    names = [folder.name for folder in sorted((tmp_path / "run" / "checkpoints").iterdir())]
    assert names == ["step-00000007", "step-00000011", "step-00000012", "step-00000014"]


def test_interrupted_by_hand(small, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        small.run(tmp_path / "run", watch=small.stopping(6, KeyboardInterrupt))
    rankwise.resume(tmp_path / "run")
    assert small.left(tmp_path / "run") == small.left(small.run(tmp_path / "whole"))


def test_steps_after_the_last_snapshot_are_done_and_recorded_again(small, tmp_path):
    seldom = {"snapshot_seconds": 1000}
    with pytest.raises(KeyboardInterrupt):
        small.run(tmp_path / "run", "replay", small.stopping(6, KeyboardInterrupt), train=seldom)
    assert [line["step"] for line in small.events(tmp_path / "run") if line["event"] == "step"] == [1, 2, 3, 1, 2]
    watch = small.copying(tmp_path / "run", tmp_path)
    rankwise.resume(tmp_path / "run", watch=watch)
    first = small.events(watch.copies[0])
    assert [line["step"] for line in first if line["event"] == "step"] == [1, 2, 3]  # back to the end of the first task
    assert small.left(tmp_path / "run") == small.left(small.run(tmp_path / "whole", "replay", train=seldom))


def test_a_run_killed_before_its_first_snapshot_starts_again(small, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        small.run(tmp_path / "run", watch=small.stopping(2, KeyboardInterrupt), train={"snapshot_seconds": 1000})
    assert len(small.events(tmp_path / "run")) == 2
    rankwise.resume(tmp_path / "run")
    assert small.left(tmp_path / "run") == small.left(small.run(tmp_path / "whole", train={"snapshot_seconds": 1000}))
