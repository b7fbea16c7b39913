"""A run belongs to what its data hold, not to where they lie; what has changed is named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from stopping import Stop, Stopping

import rankwise
from rankwise import saved
from rankwise.errors import StorageError
from rankwise.learning.run import Watch


def write_rows(path: Path, rows: int = 60, seed: int = 1) -> None:
    path.parent.mkdir(exist_ok=True)
    pictures = np.random.default_rng(seed).integers(0, 255, (rows, 8, 8), dtype=np.uint8)
    np.savez(path, input=pictures, target=np.arange(rows) % 4)


def started(small, place: Path, **stream) -> Path:
    """Return a run of the data in old/train.npz that was stopped within its second task."""
    write_rows(place / "old" / "train.npz")
    own = {"train": str(place / "old" / "train.npz"), "classes_per_task": 2, "train_limit": 15, **stream}
    with pytest.raises(Stop):
        rankwise.run({**small.config("lora"), "stream": own}, out=place / "run", watch=Stopping(5))
    return place / "run"


def edit(run: Path, was: str, now: str) -> None:
    text = (run / "config.toml").read_text()
    assert was in text
    (run / "config.toml").write_text(text.replace(was, now))


def test_a_run_goes_on_where_its_data_were_moved(small, tmp_path):
    run = started(small, tmp_path)
    (tmp_path / "old").rename(tmp_path / "new")
    edit(run, str(tmp_path / "old"), str(tmp_path / "new"))
    results = rankwise.resume(run).results
    assert saved.evaluate(run)["scores"]
    assert len(saved.path(run, alphas=2)) > 0
    assert saved.undo(run)
    assert rankwise.resume(run).results["matrix"] == results["matrix"]


def test_a_config_that_was_edited_is_refused_by_the_key(small, tmp_path):
    run = started(small, tmp_path)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    edit(run, "weight_decay = 0.0", "weight_decay = 0.5")
    with pytest.raises(StorageError, match=r"the config has changed .*: train.weight_decay was 0.0, is 0.5; start a"):
        rankwise.resume(run)
    (run / "config.toml").write_bytes(before[run / "config.toml"])
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    edit(run, "snapshot_seconds = 0.0", "snapshot_seconds = 9.0")
    assert rankwise.resume(run).results["matrix"]


class Noting(Watch):
    """Keeps the notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def test_notes_on_the_data_are_told_once_when_a_run_begins(small, tmp_path):
    write_rows(tmp_path / "old" / "train.npz")
    rows, watch = str(tmp_path / "old" / "train.npz"), Noting()
    own = {"train": rows, "test": rows, "classes_per_task": 4, "test_limit": 8, "validation": 0}
    rankwise.run({**small.config("lora"), "stream": own}, out=tmp_path / "run", watch=watch)
    assert watch.notes == ["note: 8 of 8 test rows of 'train-1' are training rows, too"]
    rankwise.resume(tmp_path / "run", watch=(again := Noting()))
    assert again.notes == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda run: write_rows(run.parent / "old/train.npz", 61), "train.npz' had 60 rows (SHA-256 "),
        (lambda run: write_rows(run.parent / "old/train.npz", 61), "), has 61 rows (SHA-256 "),
        (lambda run: write_rows(run.parent / "old/train.npz", seed=2), "), has 60 rows (SHA-256 "),
        (lambda run: edit(run, "classes_per_task = 2", "classes_per_task = 3"), "classes_per_task was 2, is 3"),
        (lambda run: edit(run, "test_limit = 8\n", ""), "test_limit was 8, is nothing"),
        (lambda run: edit(run, "seed = 0", "seed = 4"), "seed was 0, is 4"),
    ],
)
def test_what_has_changed_is_named(small, tmp_path, change: Callable[[Path], None], said: str):
    run = started(small, tmp_path, test_limit=8)
    change(run)
    with pytest.raises(StorageError, match="the stream has changed since this run was started: ") as caught:
        rankwise.resume(run)
    assert said in str(caught.value) and len(str(caught.value).splitlines()) == 1
