"""What was learnt when, the state a run ended in, and the way back before its last task."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import rankwise
from rankwise import saved
from rankwise.errors import StorageError, UsageError
from rankwise.learning.ledger import Ledger
from rankwise.reporting import page

METHODS = ("mora", "replay", "finetune", "joint")


@pytest.fixture(scope="module", params=METHODS)
def done(request, small, tmp_path_factory) -> Path:
    """A finished run of each kind; tests that change it take a copy."""
    return small.run(tmp_path_factory.mktemp("past") / "run", request.param)


@pytest.fixture
def run(done, tmp_path) -> Path:
    shutil.copytree(done, tmp_path / "run")
    return tmp_path / "run"


def results(run: Path) -> dict:
    return json.loads((run / "results.json").read_text())


def kept(run: Path) -> dict[str, bytes]:
    """Every byte of the snapshots at task ends."""
    found = Ledger(run).task_ends().values()
    return {str(file.relative_to(run)): file.read_bytes() for folder in found for file in folder.iterdir()}


def test_the_log_says_what_was_learnt_when(small, done):
    records, found = saved.log(done), results(done)
    assert [record["scores"] for record in records] == [row for row in found["matrix"] if row != [None, None]]
    assert [record["steps"] for record in records] == ([6] if found["method"] == "joint" else [3, 3])
    assert sum(record["wall_seconds"] for record in records) == pytest.approx(found["wall_seconds"], abs=2e-3)
    assert all((done / "checkpoints" / record["snapshot"]).is_dir() for record in records)
    assert [record["time"] for record in records] == sorted(record["time"] for record in records)


def test_evaluation_of_the_saved_state_is_the_last_row(done):
    found, now = results(done), saved.evaluate(done)
    assert now["scores"] == found["matrix"][-1]
    assert now["validation"] == found["validation_matrix"][-1]
    assert now["tasks"] == found["tasks"]
    assert saved.evaluate(done, task="digits-2")["scores"] == found["matrix"][-1][1:]
    with pytest.raises(UsageError, match="did you mean 'digits-2'"):
        saved.evaluate(done, task="digit-2")


def test_evaluation_writes_nothing(run):
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    saved.evaluate(run)
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_undone_and_relearnt_is_as_before(small, done, run):
    before, snapshots = small.left(done), kept(done)
    name = saved.log(done)[-1]["task"]
    assert saved.undo(run)["undone"] == name
    assert kept(run).items() < snapshots.items()
    rankwise.resume(run)
    assert small.left(run) == before
    clocks = {file for file in snapshots if file.endswith(".json")}  # wall seconds, and the manifest's hash of them
    assert {f: b for f, b in kept(run).items() if f not in clocks} == {
        f: b for f, b in snapshots.items() if f not in clocks
    }


@pytest.mark.parametrize("method", ["mora", "replay", "finetune"])
def test_undone_is_as_if_the_task_had_never_come(small, tmp_path, method):
    """Another run of which the stream has one task less leaves the same adapter, scores, events and tensors."""
    long = small.run(tmp_path / "long", method, stream={"classes_per_task": 4})
    short = small.run(tmp_path / "short", method, stream={"classes_per_task": 4, "first_tasks": 2})
    assert saved.undo(long)["undone"] == "digits-3"
    assert small.weights(long).keys() == small.weights(short).keys()
    assert all((small.weights(long)[name] == tensor).all() for name, tensor in small.weights(short).items())
    cut = [{**e, **{k: e[k][:2] for k in ("scores", "validation") if k in e}} for e in small.events(long)]
    assert cut == small.events(short)
    assert [row[:2] for row in results(long)["matrix"]] == results(short)["matrix"]
    assert results(long)["final_average"] == results(short)["final_average"]
    assert saved.evaluate(long)["scores"] == results(long)["matrix"][-1]
    lines = (long / "matrix.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["after", "nothing", "digits-1", "digits-2"]
    newest = [sorted((run / "checkpoints").iterdir())[-1] / "state.safetensors" for run in (long, short)]
    assert newest[0].read_bytes() == newest[1].read_bytes()


def test_all_tasks_can_be_undone_one_by_one(small, run, done):
    before, names = small.left(done), [record["task"] for record in saved.log(done)]
    assert [saved.undo(run)["undone"] for _ in names] == names[::-1]
    assert [event["event"] for event in small.events(run)] == ["start"]
    assert list((run / "checkpoints").iterdir()) == []
    assert results(run)["final_average"] is None
    with pytest.raises(UsageError, match="no task has been learnt yet"):
        saved.undo(run)
    assert saved.evaluate(run)["learnt"] == []
    rankwise.resume(run)
    assert small.left(run) == before


def test_the_page_is_that_of_what_is_left(run, monkeypatch):
    """Also where the undo is killed between the results and their page: then the next one writes it."""
    whole = (run / "report.html").read_bytes()

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(saved, "left_behind", killed)
        saved.undo(run)
    assert (run / "report.html").read_bytes() == whole
    saved.undo(run)
    after = (run / "report.html").read_bytes()
    assert b"of 2 tasks are learnt" in after
    assert page.report([run])[0].read_bytes() == after
    rankwise.resume(run)
    assert b"of 2 tasks are learnt" not in (run / "report.html").read_bytes()


def test_a_task_under_way_goes_with_the_last_finished_one(small, tmp_path):
    whole = small.run(tmp_path / "whole", "mora", stream={"classes_per_task": 4})
    with pytest.raises(KeyboardInterrupt):
        small.run(
            tmp_path / "run", "mora", small.stopping(8, KeyboardInterrupt), stream={"classes_per_task": 4}
        )  # in the middle of the third task
    assert saved.undo(tmp_path / "run")["undone"] == "digits-2"
    assert [record["task"] for record in saved.log(tmp_path / "run")] == ["digits-1"]
    rankwise.resume(tmp_path / "run")
    assert small.left(tmp_path / "run") == small.left(whole)


@pytest.mark.parametrize("name", ["discard", "truncate", "finish"])
def test_an_undo_killed_on_the_way_is_ended_by_the_next(small, done, run, monkeypatch, name):
    """Whatever call it died at, the next undo or resume ends this one, and takes nothing further back."""

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    tasks = [record["task"] for record in saved.log(done)]
    home = "rankwise.learning.past" if name == "finish" else "rankwise.learning.ledger"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(f"{home}.{name}", killed)
        saved.undo(run)
    shutil.copytree(run, other := run.with_name("other"))
    assert saved.undo(run)["undone"] == tasks[-1]
    assert [record["task"] for record in saved.log(run)] == tasks[:-1]
    rankwise.resume(other)
    assert small.left(other) == small.left(done)
    assert not (other / "undo.json").exists()


def test_without_the_snapshot_to_go_back_to_nothing_is_touched(small, tmp_path):
    run = small.run(tmp_path / "run")
    target = Ledger(run).task_ends()[1] / "state.safetensors"
    data = target.read_bytes()
    target.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    before = small.left(run)
    with pytest.raises(StorageError, match="SHA-256"):
        saved.undo(run)
    assert small.left(run) == before
    shutil.rmtree(target.parent)
    with pytest.raises(StorageError, match="'digits-1' is gone"):
        saved.undo(run)
    assert small.left(run) == before


def test_undo_waits_for_nobody(small, tmp_path):
    run = small.run(tmp_path / "run")
    with Ledger(run).locked(), pytest.raises(StorageError, match="another process is writing"):
        saved.undo(run)


def test_no_run_is_no_run(tmp_path):
    for verb in (saved.log, saved.evaluate, saved.undo):
        with pytest.raises(StorageError, match="no run there"):
            verb(tmp_path)
