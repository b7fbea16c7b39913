"""Guarantee 5: any split into micro-batches or processes gives the same run to rounding; every row is seen once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

import rankwise
from rankwise.config import TrainSettings
from rankwise.errors import ConflictError, UsageError
from rankwise.learning.processes import Processes, outer_blocks

DRIVER = Path(__file__).with_name("launched.py")
EPOCHS = {"steps": None, "epochs": 2, "batch_size": 6}
"""15 rows a task in batches of 6, 6 and 3."""
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "mora": ("mora", {}),
    "short batches": ("replay", {"train": {**EPOCHS, "accumulate": 3}}),
    "views": ("replay", {"train": {**EPOCHS, "accumulate": 2, "workers": 2, "augment": ["crop", "flip"]}}),
    "finetune": ("finetune", {"train": EPOCHS}),
    "joint": ("joint", {"train": {"clip": 0.1}}),
    "sharded": ("mora", {"train": {"shard_base": True}}),
    "sharded, short batches": ("lora", {"train": {**EPOCHS, "accumulate": 3, "shard_base": True}}),
    "sharded, uneven evaluation": ("independent", {"train": {"shard_base": True, "eval_batch_size": 3}}),
}


class Launched:
    """Runs done by two processes, and beside each the same run done by one."""

    def __init__(self, folder: Path, small: Any) -> None:
        self.folder, self.small = folder, small

    def two(self, name: str) -> Path:
        return self.folder / f"two {name}"

    def one(self, name: str) -> Path:
        out = self.folder / f"one {name}"
        if not out.exists():
            method, tables = RUNS[name]
            self.small.run(out, method, **tables)
        return out

    def audit(self, rank: int) -> dict[str, Any]:
        return json.loads((self.folder / f"audit-{rank}.json").read_text())


def launch(launcher: list[str], jobs: list[dict[str, Any]], folder: Path) -> None:
    """Do `jobs` in two processes on this machine."""
    (folder / "jobs.json").write_text(json.dumps(jobs))
    command = [sys.executable, "-m", *launcher, str(DRIVER), str(folder / "jobs.json")]
    source = str(Path(rankwise.__file__).parents[1])
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": source}, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr[-3000:]


TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc_per_node=2"]
# `accelerate launch --cpu --num_processes 2` starts one process unless MPI is there; its launcher for several GPUs
# starts two, and the runs' device = "cpu" lets them compute on the processor.
ACCELERATE = [
    "accelerate.commands.launch",
    "--multi_gpu",
    "--num_processes=2",
    "--num_machines=1",
    "--mixed_precision=no",
]


@pytest.fixture(scope="module")
def launched(small, tmp_path_factory) -> Launched:
    """All runs of this file that take two processes, from one launch."""
    folder = tmp_path_factory.mktemp("launched")
    found = Launched(folder, small)
    jobs = [{"config": small.config(m, **t), "out": str(found.two(name))} for name, (m, t) in RUNS.items()]
    jobs[0]["copy"] = str(folder / "copy")
    with pytest.raises(KeyboardInterrupt):
        small.run(folder / "elastic", watch=small.stopping(5, KeyboardInterrupt))
    launch(TORCHRUN, [*jobs, {"resume": str(folder / "elastic")}], folder)
    return found


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_equal_one(small, launched, name):
    one, two = launched.one(name), launched.two(name)
    expected, found = small.losses(one), small.losses(two)
    assert len(expected) >= 6
    assert found[:3] == pytest.approx(expected[:3], abs=1e-6)
    assert found == pytest.approx(expected, abs=5e-6)  # AdamW lets rounding grow where the second moment is small
    results = [json.loads((out / "results.json").read_text()) for out in (one, two)]
    assert results[0]["matrix"] == results[1]["matrix"]
    assert results[0]["validation_matrix"] == results[1]["validation_matrix"]
    weights, others = small.weights(one), small.weights(two)
    assert weights.keys() == others.keys()
    for key in weights:
        torch.testing.assert_close(others[key], weights[key], rtol=0, atol=1e-4, msg=key)


@pytest.mark.parametrize("name", ["short batches", "sharded, short batches", "finetune"])
def test_each_row_is_seen_once_an_epoch(small, launched, name):
    seen: Counter[int] = Counter()
    for rank in (0, 1):
        rows = launched.audit(rank)["rows"][str(launched.two(name))]
        first_task = [ids for begun, _, ids in rows if begun == 1]  # later ones may hold rehearsed rows as well
        assert 0 < max(len(ids) for ids in first_task) <= 3
        seen.update(i for ids in first_task for i in ids)
    assert len(seen) == 15
    assert set(seen.values()) == {2}


def test_only_the_first_process_writes(launched):
    assert len(launched.audit(0)["writes"]) > 100
    assert launched.audit(1)["writes"] == []


def test_a_run_goes_on_with_more_or_fewer_processes(small, launched):
    expected = small.losses(launched.one("mora"))
    assert small.losses(launched.folder / "elastic") == pytest.approx(expected, abs=1e-6)
    assert len(small.losses(launched.folder / "copy")) < len(expected)
    rankwise.resume(launched.folder / "copy")
    assert small.losses(launched.folder / "copy") == pytest.approx(expected, abs=1e-6)


@pytest.mark.slow
def test_accelerate_launch(small, tmp_path):
    jobs = [{"config": small.config("mora"), "out": str(tmp_path / "run")}]
    launch(ACCELERATE, jobs, tmp_path)
    assert (tmp_path / "audit-1.json").exists()
    alone = small.losses(small.run(tmp_path / "alone"))
    assert small.losses(tmp_path / "run") == pytest.approx(alone, abs=1e-6)


@pytest.mark.parametrize("method", ["mora", "replay", "finetune"])
def test_micro_batches_do_not_matter(small, tmp_path, method):
    runs = {}
    for accumulate in (1, 2, 3):
        out = small.run(tmp_path / f"{accumulate}", method, train={**EPOCHS, "accumulate": accumulate})
        runs[accumulate] = (small.losses(out), json.loads((out / "results.json").read_text())["matrix"])
    assert len(runs[1][0]) >= 12
    for accumulate in (2, 3):
        assert runs[accumulate][0] == pytest.approx(runs[1][0], abs=1e-6)
        assert runs[accumulate][1] == runs[1][1]


def test_a_base_that_learns_is_not_sharded(small, tmp_path):
    with pytest.raises(ConflictError, match="shard_base.*finetune"):
        small.run(tmp_path / "run", "finetune", train={"shard_base": True})
    assert not (tmp_path / "run").exists()


def test_sharding_in_one_process_changes_nothing(small, tmp_path):
    plain = small.left(small.run(tmp_path / "plain"))
    assert small.left(small.run(tmp_path / "sharded", train={"shard_base": True})) == plain


def test_shares_cover_every_row_once():
    for world in (1, 2, 3):
        for count in (3, 4, 7, 8):
            shares = [Processes(torch.device("cpu"), rank, world).share(count) for rank in range(world)]
            assert [row for share in shares for row in share] == list(range(count))
    assert list(Processes(torch.device("cpu"), 1, 4).share(3)) == [0, 1, 2]  # too few to go round: all take all


def test_a_gpu_that_is_not_there():
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(UsageError, match="no GPU"):
        Processes.start(TrainSettings(device="cuda"))


def test_blocks_are_the_elements_of_outer_lists():
    inner = torch.nn.ModuleList([torch.nn.Linear(1, 1)])
    stage = torch.nn.ModuleDict({"blocks": inner})
    model = torch.nn.ModuleDict({"stem": torch.nn.Linear(1, 1), "stages": torch.nn.ModuleList([stage, stage])})
    assert outer_blocks(model) == [stage, stage]
