"""What was torn, altered or put in the wrong place is named in one line; `tests/learning/test_snapshots.py` has the
damage within a snapshot, this file what belongs elsewhere and what lies beside the snapshots."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import rankwise
from rankwise import cli

TINY = {
    "method": "lora",
    "model": {"name": "embedded:vit"},
    "stream": {"name": "digits", "classes_per_task": 5, "train_limit": 8, "test_limit": 5, "validation": 5},
    "adapter": {"rank": 2, "sites": ["q_proj"]},
    "train": {"steps": 2, "batch_size": 4, "device": "cpu", "threads": 1, "snapshot_seconds": 0},
}
Said = Callable[..., tuple[int, list[str]]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    """A finished run, and another that differs in its seed only."""
    folder = tmp_path_factory.mktemp("runs")
    for seed, name in enumerate(("own", "other")):
        rankwise.run({**TINY, "seed": seed}, out=folder / name)
    return {name: folder / name for name in ("own", "other")}


@pytest.fixture
def run(runs, tmp_path) -> Path:
    return shutil.copytree(runs["own"], tmp_path / "run")


@pytest.fixture
def said(capsys) -> Said:
    """Run a command; return its exit code and the lines on stderr."""

    def call(*words: str | Path) -> tuple[int, list[str]]:
        code = cli.main([str(word) for word in words])
        return code, capsys.readouterr().err.splitlines()

    return call


def tensors(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (run / "adapter").glob("*.safetensors")}


def test_a_snapshot_of_another_run_is_named_and_not_taken_for_an_own_one(runs, run, said):
    newest = sorted((runs["other"] / "checkpoints").glob("step-*"))[-1]
    strange = shutil.copytree(newest, run / "checkpoints" / "step-00000099")
    code, lines = said("resume", run)
    refused = [line for line in lines if line.startswith("refused ")]
    assert code == 0
    assert len(refused) == 1
    assert str(strange) in refused[0]
    assert "another run" in refused[0]
    assert tensors(run) == tensors(runs["own"])
    assert (run / "matrix.csv").read_bytes() == (runs["own"] / "matrix.csv").read_bytes()
    assert not strange.exists()
    assert (run / "checkpoints" / "refused-00000099").is_dir()


def test_an_older_snapshot_under_a_newer_name_changes_nothing(runs, run, said):
    oldest = sorted((run / "checkpoints").glob("step-*"))[0]
    shutil.copytree(oldest, run / "checkpoints" / "step-00000099")
    assert said("resume", run)[0] == 0
    assert tensors(run) == tensors(runs["own"])


READERS = {
    "config.toml": ("resume", "evaluate", "undo"),
    "environment.json": ("resume", "evaluate", "undo"),
    "undo.json": ("resume", "undo"),
    "events.jsonl": ("log",),
    "results.json": ("compare",),
    "adapter/adapter.safetensors": ("merge", "export"),
    "adapter/adapter.json": ("merge", "export"),
    "adapter/manifest.json": ("merge", "export"),
}


@pytest.mark.parametrize(("name", "verb"), [(name, verb) for name, verbs in READERS.items() for verb in verbs])
@pytest.mark.parametrize("damage", ["cut", "another form"])
def test_a_damaged_file_of_a_run_is_named_by_what_reads_it(run, said, tmp_path, name, verb, damage):
    path = run / name
    if name == "undo.json":
        path.write_text(json.dumps({"task": "digits-2", "number": 3, "events": 1}))
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] + b"\n" if damage == "cut" else b"[1]\n")
    before = {file: file.read_bytes() for file in run.rglob("*.safetensors")}
    out = ("--out", tmp_path / "made") if verb in ("merge", "export") else ()
    code, lines = said(verb, run, *out)
    assert code in (1, 2)
    assert lines
    assert all(line.startswith("error: ") for line in lines)
    assert path.name in lines[0]
    assert not (tmp_path / "made").exists()
    assert {file: file.read_bytes() for file in run.rglob("*.safetensors")} == before
