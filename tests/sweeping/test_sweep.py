"""A sweep of six small runs: what it picks and on what, and that it goes on wherever it was killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import rankwise
from rankwise import api
from rankwise.errors import RankwiseError, StorageError, UsageError
from rankwise.learning.run import Watch
from rankwise.sweeping import Plan, make_plan, work
from rankwise.sweeping.record import Record, failures
from rankwise.sweeping.work import sweep

SOURCE = Path(__file__).resolve().parents[2] / "src"
RATES = [1e-3, 0.1]
CLOCKED = ("wall_seconds", "peak_memory_bytes")
SMALL = """
method = "lora"
[stream]
classes_per_task = 5
train_limit = 10
test_limit = 10
validation = 8
[adapter]
sites = ["q_proj"]
[train]
steps = 1
device = "cpu"
"""


class Told(Watch):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("config") / "small.toml"
    path.write_text(SMALL)
    return path


@pytest.fixture(scope="module")
def plan(config) -> Plan:
    return make_plan(config, {"train.lr": RATES}, methods=["lora", "joint"], seeds=1, tune_tasks=1)


@pytest.fixture(scope="module")
def whole(plan, tmp_path_factory) -> tuple[Path, dict[str, Any], list[str]]:
    folder, told = tmp_path_factory.mktemp("whole") / "sweep", Told()
    return folder, sweep(plan, folder, watch=told), told.notes


def unclocked(record: dict[str, Any]) -> dict[str, Any]:
    cells = [{key: value for key, value in cell.items() if key not in CLOCKED} for cell in record["cells"]]
    return {**record, "cells": cells}


def test_the_record_has_every_cell_and_the_choice(plan, whole):
    folder, record, notes = whole
    assert record == json.loads((folder / "sweep.json").read_text())
    assert record["plan"] == plan.record()
    stages = [(cell["stage"], cell["method"], cell["values"]["train.lr"]) for cell in record["cells"]]
    assert stages[:4] == [("tune", method, lr) for method in ("lora", "joint") for lr in RATES]
    for method in ("lora", "joint"):
        tuned = [cell for cell in record["cells"] if (cell["stage"], cell["method"]) == ("tune", method)]
        best = max(tuned, key=lambda cell: cell["validation_final_average"])
        assert record["chosen"][method]["values"] == best["values"]
        assert record["chosen"][method]["validation"] == best["validation_final_average"]
        assert ("final", method, best["values"]["train.lr"]) in stages
    assert len(stages) == 6
    assert len(notes) == 6


def test_nothing_of_a_tuning_runs_test_scores_is_left(whole):
    folder, record, _ = whole
    tuned = [cell for cell in record["cells"] if cell["stage"] == "tune"]
    keys = {"stage", "method", "values", "seed", "folder", "validation_final_average", "wall_seconds"}
    assert [cell.keys() for cell in tuned] == [keys] * 4
    assert sorted(path.name for path in folder.iterdir()) == [".lock", "joint-seed0", "lora-seed0", "sweep.json"]


def test_a_tuning_run_sees_the_first_tasks_only(plan, whole, tmp_path):
    """The recorded score is that of a run of the first of two tasks, and not the whole stream's."""
    cell = plan.tuning("lora")[0]
    results = rankwise.run(plan.config, out=tmp_path / "r", overrides=plan.overrides_of(cell)).results
    assert results["tasks"] == ["digits-1"]
    assert Record(whole[0], plan).find(cell)["validation_final_average"] == results["validation_final_average"]


def test_every_final_run_has_its_page_and_one_that_was_lost_comes_back(plan, whole):
    folder, record, _ = whole
    pages = {name: (folder / name / "report.html").read_bytes() for name in ("lora-seed0", "joint-seed0")}
    (folder / "lora-seed0" / "report.html").unlink()
    assert sweep(plan, folder) == record
    assert {name: (folder / name / "report.html").read_bytes() for name in pages} == pages


def test_a_final_run_is_a_run(plan, whole, tmp_path):
    folder, record, _ = whole
    cell = plan.final("lora", record["chosen"]["lora"]["values"])[0]
    alone = rankwise.run(plan.config, out=tmp_path / "r", overrides=plan.overrides_of(cell)).results
    assert alone["tasks"] == ["digits-1", "digits-2"]
    saved = json.loads((folder / cell.folder / "results.json").read_text())
    assert {k: v for k, v in saved.items() if k not in CLOCKED} == {k: v for k, v in alone.items() if k not in CLOCKED}


@pytest.mark.parametrize(
    ("number", "instant"),
    [(2, "before its record"), (3, "in a run"), (5, "before a run"), (5, "in a run"), (5, "after its record")],
)
def test_killed_at_an_instant_it_goes_on_there(plan, whole, tmp_path, monkeypatch, number, instant):
    runs = {"all": 0}
    real_run, real_add = api.run, Record.add

    class Stop(Watch):
        def stepped(self, done: int, loss: float) -> None:
            raise KeyboardInterrupt

    def run(*arguments: Any, **options: Any) -> Any:
        runs["all"] += 1
        now = runs["all"] == number
        if now and instant == "before a run":
            raise KeyboardInterrupt
        return real_run(*arguments, **options, watch=Stop() if now and instant == "in a run" else None)

    def add(self: Record, *arguments: Any) -> Any:
        if runs["all"] == number and instant == "before its record":
            raise KeyboardInterrupt
        entry = real_add(self, *arguments)
        if runs["all"] == number and instant == "after its record":
            raise KeyboardInterrupt
        return entry

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(api, "run", run)
        patch.setattr(Record, "add", add)
        sweep(plan, tmp_path / "sweep")
    told = Told()
    record = sweep(plan, tmp_path / "sweep", watch=told)
    assert unclocked(record) == unclocked(whole[1])
    assert len(told.notes) == 6 - number + (instant != "after its record")
    for name in ("lora-seed0", "joint-seed0"):
        ours, theirs = (root / name / "adapter" / "adapter.safetensors" for root in (tmp_path / "sweep", whole[0]))
        assert ours.read_bytes() == theirs.read_bytes()


def test_a_sweep_that_is_done_learns_nothing_again(plan, whole, monkeypatch):
    monkeypatch.setattr(work, "learn", None)
    assert sweep(plan, whole[0]) == whole[1]


def test_seeds_and_methods_can_be_added_but_nothing_else_changed(config, tmp_path):
    first = make_plan(config, {}, methods=["lora"], seeds=1)
    sweep(first, tmp_path / "s")
    told = Told()
    more = sweep(make_plan(config, {}, methods=["lora", "joint"], seeds=2), tmp_path / "s", watch=told)
    assert len(told.notes) == 3
    assert [cell["folder"] for cell in more["cells"]] == ["lora-seed0", "lora-seed1", "joint-seed0", "joint-seed1"]
    with pytest.raises(StorageError, match="another grid"):
        sweep(make_plan(config, {"train.lr": RATES}, methods=["lora", "joint"], seeds=2), tmp_path / "s")
    with pytest.raises(StorageError, match=r"methods was \[\"lora\", \"joint\"\], now \[\"lora\"\]"):
        sweep(first, tmp_path / "s")
    other = ["seed=0", "train.steps=2"]
    with pytest.raises(
        StorageError, match=r"another config \(config\.train\.steps was 1, now 2; config\.seed was not set"
    ):
        sweep(make_plan(config, {}, methods=["lora", "joint"], seeds=2, overrides=other), tmp_path / "s")


def test_a_sweep_of_which_nothing_was_learnt_can_be_asked_anew(config, plan, tmp_path):
    absent = make_plan(config, {}, seeds=1, overrides=["stream.train=absent.csv", "stream.name=mine"])
    with pytest.raises(RankwiseError, match=r"absent\.csv"):
        sweep(absent, tmp_path)
    assert Record(tmp_path, plan).cells == []


def test_runs_that_are_there_without_a_record_are_not_taken_for_its_own(plan, tmp_path):
    (tmp_path / "lora-seed0").mkdir()
    (tmp_path / "lora-seed0" / "config.toml").write_text("seed = 0\n")
    with pytest.raises(StorageError, match="another config"):
        sweep(plan, tmp_path)


def test_a_loss_that_is_not_finite_loses(config, tmp_path):
    plan = make_plan(config, {"train.lr": [1e30, 1e-3]}, seeds=1, tune_tasks=1, overrides=["train.steps=2"])
    record = sweep(plan, tmp_path / "s")
    assert "lower train.lr" in record["cells"][0]["error"]
    assert record["chosen"]["lora"]["values"] == {"train.lr": 1e-3}
    assert failures(record) == []
    bad = make_plan(config, {"train.lr": [1e30, 1e29]}, seeds=1, tune_tasks=1, overrides=["train.steps=2"])
    record = sweep(bad, tmp_path / "bad")
    assert failures(record) == ["lora: every tuning run failed, see sweep.json; try smaller values"]
    assert {cell["stage"] for cell in record["cells"]} == {"tune"}


def test_what_only_a_method_knows_is_refused_before_the_first_run(config, tmp_path):
    plan = make_plan(config, {"adapter.gate.top_kk": [1, 2]}, methods=["lora", "mora"])
    with pytest.raises(UsageError, match="top_kk"):
        sweep(plan, tmp_path / "s")
    assert not (tmp_path / "s").exists()


def entry(record: Record, scores: dict[float, list[float | None]]) -> Record:
    cells = record.plan.tuning("lora")
    for cell in cells:
        score = scores[cell.values["train.lr"]][cell.seed]
        record.cells.append({"folder": cell.folder, "validation_final_average": score})
    return record


@pytest.mark.parametrize(
    ("scores", "lr", "edge"),
    [
        ({0.1: [0.5, 0.5], 0.2: [0.4, 0.9], 0.3: [0.6, 0.6]}, 0.2, []),
        ({0.1: [0.5, 0.5], 0.2: [0.5, 0.5], 0.3: [0.5, 0.5]}, 0.1, ["train.lr"]),
        ({0.1: [0.5, 0.5], 0.2: [0.4, 0.9], 0.3: [1.0, 0.6]}, 0.3, ["train.lr"]),
        ({0.1: [0.5, 0.5], 0.2: [0.9, None], 0.3: [0.1, 0.1]}, 0.1, ["train.lr"]),
    ],
)
def test_the_best_mean_over_tuning_seeds_is_taken(config, tmp_path, scores, lr, edge):
    plan = make_plan(config, {"train.lr": [0.1, 0.2, 0.3]}, seeds=2, tune_seeds=2)
    choice = entry(Record(tmp_path, plan), scores).choice("lora")
    assert (choice["values"], choice["at_edge"]) == ({"train.lr": lr}, edge)


def test_a_choice_waits_for_all_its_runs(config, tmp_path):
    record = entry(Record(tmp_path, make_plan(config, {"train.lr": [0.1, 0.2]}, seeds=1)), {0.1: [0.5], 0.2: [0.6]})
    record.cells.pop()
    assert record.choice("lora") is None


def test_another_process_is_waited_for_by_nobody(plan, tmp_path):
    from rankwise.learning.ledger import Ledger

    with Ledger(tmp_path).locked(), pytest.raises(StorageError, match="another process"):
        sweep(plan, tmp_path)


def listen() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # where the tests run in the background it is ignored


def start(config: Path, folder: Path) -> subprocess.Popen[str]:
    """Start the real command, in a group of processes of its own, as a terminal does."""
    line = [sys.executable, "-m", "rankwise", "sweep", config, "--grid", f"train.lr={RATES}", "--methods", "lora,joint"]
    environment = os.environ | {"PYTHONPATH": str(SOURCE)}
    return subprocess.Popen(
        [*map(str, line), "--seeds", "1", "--tune-tasks", "1", "--jobs", "2", "--out", str(folder)],
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=listen,
    )


def children(process: subprocess.Popen[str]) -> list[Path]:
    """The processes it started that are alive."""
    told = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=False).stdout
    return [Path("/proc", pid) for pid in told.split()]


def gone(processes: list[Path]) -> bool:
    deadline = time.monotonic() + 20
    while any(each.exists() for each in processes) and time.monotonic() < deadline:
        time.sleep(0.1)
    return not any(each.exists() for each in processes)


@pytest.mark.slow
@pytest.mark.parametrize("wait", [0.1, 1.5])
def test_ctrl_c_is_told_in_one_line_while_its_processes_start(config, tmp_path, wait):
    process = start(config, tmp_path / "s")
    deadline = time.monotonic() + 100
    while len(children(process)) < 3 and time.monotonic() < deadline:  # two runs and what watches over both
        time.sleep(0.01)
    started = children(process)
    time.sleep(wait)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, f"stopped; the same command goes on in {tmp_path / 's'}\n")
    assert gone(started)


@pytest.mark.slow
def test_processes_killed_with_their_parent_and_resumed(config, plan, whole, tmp_path):
    process = start(config, tmp_path / "s")
    assert process.stderr is not None
    process.stderr.readline()  # the first cell is done, others are under way
    started = children(process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert gone(started)
    again = start(config, tmp_path / "s")
    out, err = again.communicate(timeout=200)
    assert again.returncode == 0, err
    assert unclocked(json.loads((tmp_path / "s" / "sweep.json").read_text())) == unclocked(whole[1])
    assert "picked on validation data" in out


def test_a_process_that_dies_is_told(monkeypatch, tmp_path):
    def dead(job: work.Job) -> Any:
        reader, writer = work.multiprocessing.get_context("spawn").Pipe(duplex=False)
        process = work.multiprocessing.get_context("spawn").Process(target=os._exit, args=(9,))
        process.start()
        writer.close()
        return reader, process

    monkeypatch.setattr(work, "_started", dead)
    with pytest.raises(RankwiseError, match=r"exit code 9.*smaller --jobs"):
        list(work._spread([work.Job(Path("c.toml"), (), tmp_path)], 2))
