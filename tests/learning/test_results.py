"""What a finished run leaves: every key of the contract, readers that agree, and nothing that should not be there."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import rankwise
from rankwise import api
from rankwise.config import load_config
from rankwise.learning import metrics
from rankwise.learning.results import whole

CONTRACT = {
    *("method", "model", "stream", "seed", "tasks", "metric", "matrix", "zero_shot", "final_average"),
    *("average_incremental", "forgetting", "backward_transfer", "forward_transfer", "learning_accuracy"),
    *("trainable_parameters", "stored_bytes", "wall_seconds", "peak_memory_bytes"),
}
SECRETS = {"HF_TOKEN": "hf_plantedplanted", "WANDB_API_KEY": "0123wandbplanted", "MY_PASSWORD": "hunter2planted"}


@pytest.fixture(scope="module")
def done(small, tmp_path_factory) -> Path:
    """A finished run, made while the environment held secrets."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SECRETS.items():
            patch.setenv(name, value)
        return small.run(tmp_path_factory.mktemp("done") / "run", train={"clip": 0.5})


def results(run: Path) -> dict[str, Any]:
    return json.loads((run / "results.json").read_text())


def test_every_key_of_the_contract(done):
    found = results(done)
    assert found.keys() >= CONTRACT
    assert found["method"] == "mora"
    assert found["metric"] == "accuracy"
    assert found["stream"] == "digits"
    assert found["tasks"] == ["digits-1", "digits-2"]
    assert found["zero_shot"] == [None, None]
    assert found["steps"] == 6
    assert found["matrix"][0][1] is None
    assert all(0 <= found["matrix"][t][j] <= 1 for t, j in ((0, 0), (1, 0), (1, 1)))


def test_scores_are_counts_over_rows(done):
    found = results(done)
    for row in found["matrix"]:
        for score, rows in zip(row, found["test_examples"], strict=True):
            assert score is None or math.isclose(score * rows, round(score * rows), abs_tol=1e-9)


def test_matrix_csv_says_the_same(done):
    found = results(done)
    with (done / "matrix.csv").open() as file:
        header, *rows = list(csv.reader(file))
    assert header == ["after", *found["tasks"]]
    assert [row[0] for row in rows] == ["nothing", *found["tasks"]]
    read = [[float(cell) if cell else None for cell in row[1:]] for row in rows]
    assert read == [found["zero_shot"], *found["matrix"]]


def test_two_readers_agree(done):
    found = results(done)
    again = metrics.summary(found["matrix"], found["zero_shot"], found["test_examples"])
    assert again
    assert {key: found[key] for key in again} == again


def test_events_say_the_same(small, done):
    found = results(done)
    scored = [line for line in small.events(done) if line["event"] == "task"]
    assert [line["scores"] for line in scored] == found["matrix"]
    assert [line["validation"] for line in scored] == found["validation_matrix"]


def test_zero_shot_is_measured_where_it_can_be(small, tmp_path):
    found = results(
        small.run(
            tmp_path / "run", stream={"kind": "domain-incremental", "classes_per_task": None, "rotations": [0, 90]}
        )
    )
    assert found["zero_shot"] == [None, None]
    assert found["matrix"][0][1] is not None  # the second task's classes are known after the first
    assert found["forward_transfer"] is None


def test_diagnostics_of_a_gate(done):
    """One record for each (row, task): mora reports each block's share, atoms that act, and how many tokens pass."""
    rows = results(done)["diagnostics"]
    assert [len(row) for row in rows] == [2, 2]
    assert rows[0][1] == {}  # not answered yet, so not measured
    for t, j, blocks in ((0, 0, 1), (1, 0, 2), (1, 1, 2)):
        cell = rows[t][j]
        assert {"active_atoms", "pass_rate", "block_share"} <= cell.keys()
        assert len(cell["block_share"]) == blocks
        assert 0.5 < sum(cell["block_share"]) <= 1 + 1e-6  # what the threshold cuts off is missing
        assert 0 < cell["active_atoms"][0] <= 8


def test_diagnostics_by_site_agree_with_those_by_task(done):
    """After the last task, each site over the test rows of all tasks; the means of both ways are the same."""
    found = results(done)
    sites = json.loads((done / "adapter" / "adapter.json").read_text())["sites"]
    assert list(found["diagnostics_by_site"]) == sorted(site["name"] for site in sites)
    sizes, last = found["test_examples"], found["diagnostics"][-1]
    for name in ("block_share", "active_atoms", "pass_rate"):
        by_task = [sum(n * cell[name][0] for n, cell in zip(sizes, last, strict=True)) / sum(sizes)]
        by_site = [cell[name][0] for cell in found["diagnostics_by_site"].values()]
        assert sum(by_site) / len(by_site) == pytest.approx(by_task[0], rel=1e-4)


def test_config_reads_back_equal(small, done):
    complete, method = api.resolve(small.config(train={"clip": 0.5}))
    assert method.slug == "mora"
    assert load_config(done / "config.toml") == complete


def test_the_adapter_loads_on_a_fresh_base_and_gives_the_same_features(small, done):
    from rankwise.models import load_backbone

    learnt, fresh = rankwise.resume(done).model, load_backbone(str(small.base))
    images = torch.arange(2 * 64, dtype=torch.uint8).reshape(2, 8, 8)
    before = fresh.features(fresh.encode(images))
    rankwise.load(fresh.module, done / "adapter")
    after = fresh.features(fresh.encode(images))
    assert not torch.equal(before, after)
    fresh.module = learnt.eval()
    torch.testing.assert_close(fresh.features(fresh.encode(images)), after)


def test_nothing_of_the_environment_is_recorded(done):
    files = [file for file in done.rglob("*") if file.is_file()]
    assert len(files) > 10
    for file in files:
        data = file.read_bytes()
        assert not [name for name in (*SECRETS, *SECRETS.values()) if name.encode() in data], file
    record = json.loads((done / "environment.json").read_text())
    assert set(record) == {
        "python",
        "platform",
        "processor_threads",
        "gpu",
        "packages",
        "base",
        "stream",
        "config",
        "run",
    }
    assert {"rankwise", "torch"} & record["packages"].keys()
    assert record["base"]["fingerprint"]


def test_costs_are_sane(small, done):
    found = results(done)
    assert 0 < found["wall_seconds"] < 60
    assert 50e6 < found["peak_memory_bytes"] < 8e9
    assert found["stored_bytes"] == sum(
        file.stat().st_size for file in (done / "adapter").iterdir() if file.name != "README.md"
    )
    sites = json.loads((done / "adapter" / "adapter.json").read_text())["sites"]
    blocks = sum(8 * (site["n_in"] + site["n_out"]) for site in sites)
    assert found["trainable_parameters"] == blocks + 5 * 16  # a block, and a head row for each class of the task


@pytest.mark.parametrize("method", ["joint", "linear-probe", "finetune", "independent"])
def test_other_kinds_of_run_leave_as_much(small, tmp_path, method):
    run = small.run(tmp_path / "run", method)
    found = results(run)
    assert found.keys() >= CONTRACT
    assert found["matrix"][1][0] is not None
    assert (found["matrix"][0] == [None, None]) == (method == "joint")
    assert (run / "adapter" / "head.safetensors").is_file()
    assert (run / "adapter" / "base.safetensors").is_file() == (method == "finetune")
    assert (run / "adapter" / "adapter.safetensors").is_file() == (method in ("joint", "independent"))


def test_rows_that_were_not_measured():
    assert whole([[1.0, 2.0]], 2) == [[None, None], [1.0, 2.0]]
