"""A damaged snapshot is named and passed over; a full disk, a second writer and changed inputs are refused."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import rankwise
from rankwise.errors import NonFiniteError, StorageError
from rankwise.learning.ledger import Ledger

FILES = ("manifest.json", "state.json", "state.safetensors")


def missing(path: Path) -> None:
    path.unlink()


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) * 2 // 3] ^= 4
    path.write_bytes(bytes(data))


def other_kind(path: Path) -> None:
    path.write_text(path.read_text().replace('"snapshot"', '"adapter"'))


def other_version(path: Path) -> None:
    path.write_text(path.read_text().replace('"version": 1', '"version": 7'))


def strange(path: Path) -> None:
    path.with_name("more.txt").write_text("")


def a_link(path: Path) -> None:
    folder = path.parent.rename(path.parent.with_name("elsewhere"))
    path.parent.symlink_to(folder.name)


DAMAGE: list[tuple[Callable[[Path], None], str]] = [
    *((damage, name) for damage in (missing, truncated, emptied, flipped) for name in FILES),
    (other_kind, "manifest.json"),
    (other_version, "manifest.json"),
    (strange, "state.json"),
    (a_link, "state.json"),
]


@pytest.fixture(scope="module")
def stopped(small, tmp_path_factory) -> tuple[Path, dict]:
    """A run stopped in its second task, with two snapshots there, and what the undisturbed run leaves."""
    folder = tmp_path_factory.mktemp("stopped")
    with pytest.raises(KeyboardInterrupt):
        small.run(folder / "run", "replay", small.stopping(6, KeyboardInterrupt))
    return folder / "run", small.left(small.run(folder / "whole", "replay"))


@pytest.mark.parametrize(
    ("damage", "name"), DAMAGE, ids=lambda value: value if isinstance(value, str) else value.__name__
)
def test_a_damaged_snapshot_is_named_and_passed_over(small, stopped, tmp_path, damage, name):
    run = shutil.copytree(stopped[0], tmp_path / "run")
    newest = sorted((run / "checkpoints").iterdir())[-1]
    assert newest.name == "step-00000006"
    damage(newest / name)
    watch = small.stopping(99)
    rankwise.resume(run, watch=watch)
    assert len(watch.notes) == 1
    assert watch.notes[0].startswith(f"refused {newest}")
    assert "\n" not in watch.notes[0]
    assert small.left(run) == stopped[1]


def test_all_snapshots_damaged_starts_from_the_beginning(small, stopped, tmp_path):
    run = shutil.copytree(stopped[0], tmp_path / "run")
    folders = list((run / "checkpoints").iterdir())
    for folder in folders:
        truncated(folder / "state.safetensors")
    watch = small.stopping(99)
    rankwise.resume(run, watch=watch)
    assert len(watch.notes) == len(folders) == 3
    assert small.left(run) == stopped[1]


def test_torn_events_and_leftovers_of_a_killed_writer(small, stopped, tmp_path):
    run = shutil.copytree(stopped[0], tmp_path / "run")
    with (run / "events.jsonl").open("a") as file:
        file.write('{"event": "st')
    shutil.copytree(run / "checkpoints" / "step-00000006", run / "checkpoints" / ".step-00000007.rankwise-tmp-1-aa")
    rankwise.resume(run)
    assert small.left(run) == stopped[1]
    assert not list((run / "checkpoints").glob(".*"))


@pytest.mark.parametrize("kills", [6, pytest.param(40, marks=pytest.mark.slow)])
def test_killed_at_any_instant(small, stopped, tmp_path, kills):
    """A fork of this process does the run and is killed; imports cost nothing, so the instants lie within the run."""
    began = time.monotonic()
    small.run(tmp_path / "timed", "replay")
    seconds = time.monotonic() - began
    for number in range(kills):
        out = tmp_path / f"run-{number}"
        config = small.config("replay")
        child = os.fork()
        if child == 0:
            try:
                rankwise.run(config, out=out)
            finally:
                os._exit(0)
        time.sleep(seconds * (number + 0.5) / kills)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        rankwise.resume(out) if (out / "config.toml").exists() else rankwise.run(config, out=out)
        assert small.left(out) == stopped[1], number


@pytest.mark.parametrize("limit", [5_000, 20_000])
def test_a_full_disk(small, stopped, tmp_path, limit):
    """With a limit on the size of files a snapshot fails half way: an error that names it, and nothing lost."""
    run = shutil.copytree(stopped[0], tmp_path / "run")
    newest = sorted((run / "checkpoints").iterdir())[-1]
    before = {file.name: file.read_bytes() for file in newest.iterdir()}
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        try:
            rankwise.resume(run)
        except StorageError as error:
            os.write(writer, str(error).encode())
        finally:
            os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    message = os.read(reader, 10_000).decode()
    assert "checkpoints" in message
    assert "ulimit -f" in message
    assert {file.name: file.read_bytes() for file in newest.iterdir()} == before
    rankwise.resume(run)
    assert small.left(run) == stopped[1]


def test_a_second_writer_is_refused(small, stopped, tmp_path):
    run = shutil.copytree(stopped[0], tmp_path / "run")
    with Ledger(run).locked(), pytest.raises(StorageError, match="another process is writing"):
        rankwise.resume(run)
    rankwise.resume(run)


def test_a_run_is_not_started_where_one_is(small, stopped, tmp_path):
    run = shutil.copytree(stopped[0], tmp_path / "run")
    events = (run / "events.jsonl").read_bytes()
    with pytest.raises(StorageError, match="rankwise resume"):
        small.run(run)
    assert (run / "events.jsonl").read_bytes() == events


def test_resume_needs_a_run(tmp_path):
    with pytest.raises(StorageError, match="no run there"):
        rankwise.resume(tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()


def test_a_changed_base_is_refused(small, tmp_path):
    base = shutil.copytree(small.base, tmp_path / "base")
    config = {**small.config(), "model": {"name": str(base)}}
    with pytest.raises(KeyboardInterrupt):
        rankwise.run(config, out=tmp_path / "run", watch=small.stopping(2, KeyboardInterrupt))
    flipped(base / "model.safetensors")
    with pytest.raises(StorageError, match="the base has changed"):
        rankwise.resume(tmp_path / "run")


def write_rows(path: Path, seed: int) -> None:
    pictures = np.random.default_rng(seed).integers(0, 255, (60, 8, 8), dtype=np.uint8)
    np.savez(path, input=pictures, target=np.arange(60) % 4)


def test_changed_data_are_refused(small, tmp_path):
    write_rows(tmp_path / "train.npz", 1)
    config = small.config()
    config["stream"] = {"name": "mine", "train": str(tmp_path / "train.npz"), "classes_per_task": 2}
    with pytest.raises(KeyboardInterrupt):
        rankwise.run(config, out=tmp_path / "run", watch=small.stopping(2, KeyboardInterrupt))
    write_rows(tmp_path / "train.npz", 2)
    with pytest.raises(StorageError, match="the stream has changed"):
        rankwise.resume(tmp_path / "run")
    write_rows(tmp_path / "train.npz", 1)
    rankwise.resume(tmp_path / "run")


def test_a_loss_that_is_not_finite_stops_the_run(small, tmp_path):
    with pytest.raises(NonFiniteError) as stopped:
        small.run(tmp_path / "run", "finetune", train={"lr": 1e38, "steps": 6})
    message = str(stopped.value)
    assert "step" in message
    newest = sorted((tmp_path / "run" / "checkpoints").glob("step-*"))[-1:]
    assert not newest or str(newest[0]) in message
    state, refused = Ledger(tmp_path / "run").last()
    assert not refused
    assert state is None or all(bool(torch.isfinite(t).all()) for n, t in state[0].items() if n.startswith("base/"))


def test_a_poisoned_row_is_named(small, tmp_path, monkeypatch):
    """From the third step on the base answers with NaN for one row; the error names it, and the run can go on."""
    from rankwise.models import Backbone

    sound, calls = Backbone.features, []

    def poisoned(self, batch):
        found = sound(self, batch)
        calls.append(found.requires_grad)
        return found * float("nan") if sum(calls) == 3 and found.requires_grad else found

    monkeypatch.setattr(Backbone, "features", poisoned)
    with pytest.raises(NonFiniteError, match=r"step 2: loss 'classify' is nan on rows \[\d+, \d+.*step-00000002"):
        small.run(tmp_path / "run")
    monkeypatch.setattr(Backbone, "features", sound)
    rankwise.resume(tmp_path / "run")
    assert small.left(tmp_path / "run") == small.left(small.run(tmp_path / "whole"))


def test_a_gradient_that_is_not_finite_stops_the_run(small, tmp_path, monkeypatch):
    """A finite loss can have such a gradient (here that of the square root at 0); it must not reach the weights."""
    from rankwise.objectives import Classify

    sound = Classify.losses
    monkeypatch.setattr(Classify, "losses", lambda *a: sound(*a) + (0 * sound(*a)).sqrt())
    with pytest.raises(NonFiniteError, match="step 0: the gradient's norm is (nan|inf) on rows"):
        small.run(tmp_path / "run")


def test_a_snapshot_that_cannot_be_read_now_is_not_removed(tmp_path, monkeypatch):
    """Whether it is one of a task's end is not known then."""
    ledger = Ledger(tmp_path)
    ledger.snapshot(({}, {}), 1, kept=True)
    read = Path.read_text

    def fails(path: Path, *args: object, **kwargs: object) -> str:
        if path.parent.name == "step-00000001":
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return read(path, *args, **kwargs)

    monkeypatch.setattr(Path, "read_text", fails)
    with pytest.raises(StorageError, match="Too many open files"):
        for number in range(2, 6):
            ledger.snapshot(({}, {}), number, kept=False)
    monkeypatch.undo()
    (tmp_path / "checkpoints" / "step-00000001" / "state.json").write_text("{")
    for number in range(6, 10):
        ledger.snapshot(({}, {}), number, kept=False)
    names = sorted(folder.name for folder in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-00000001", "step-00000008", "step-00000009"]


def test_state_json_holds_json_only(stopped):
    newest = sorted((stopped[0] / "checkpoints").iterdir())[-1]
    assert {file.name for file in newest.iterdir()} == set(FILES)
    json.loads((newest / "state.json").read_text(), parse_constant=lambda name: pytest.fail(name))
