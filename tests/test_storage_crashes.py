"""Saved folders are whole or not there, whichever call of a write kills the process, is torn or finds a full disk."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from rankwise import files, storage
from rankwise.errors import StorageError

OLD = {"a.bin": b"old" * 700, "b.json": b"{}"}
NEW = {"a.bin": b"new" * 700, "b.json": b'{"n": 1}', "c.bin": b""}
CALLS = ("open", "write", "pwrite", "ftruncate", "fsync", "rename", "mkdir", "unlink", "rmdir", "close")
KILLED, REFUSED = 77, 78


def contents(path: Path) -> dict[str, bytes] | None:
    """What a reader finds: the files' bytes, or None if there is no folder."""
    if not path.exists() and not storage._aside(path).exists():
        return None
    return {name: file.read_bytes() for name, file in storage.read_folder(path, kind="snapshot").items()}


def write(path: Path, content: Mapping[str, bytes]) -> None:
    storage.write_folder(path, content, kind="snapshot")


# A process that dies, or whose disk fails, at the k-th call.


class Fault:
    """Replaces the calls of `os` that change a disk; does something bad at call number `at` (0 = never)."""

    def __init__(self, at: int, mode: str) -> None:
        self.at, self.mode, self.count = at, mode, 0
        for name in CALLS:
            setattr(os, name, self.wrapped(name, getattr(os, name)))

    def wrapped(self, name: str, real: Callable) -> Callable:
        def call(*args, **kwargs):
            self.count += 1
            if self.count == self.at or (self.mode == "dead" and 0 < self.at <= self.count):
                self.strike(name, real, args, kwargs)
            return real(*args, **kwargs)

        return call

    def strike(self, name: str, real: Callable, args: tuple, kwargs: dict) -> None:
        if self.mode == "kill":
            os._exit(KILLED)
        if name in ("write", "pwrite"):
            real(args[0], bytes(args[1])[: len(args[1]) // 2], *args[2:])
        elif self.mode == "tear" or name == "close":
            with contextlib.suppress(FileNotFoundError):
                real(*args, **kwargs)
        if self.mode == "tear":
            os._exit(KILLED)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def in_child(action: Callable[[], None], at: int = 0, mode: str = "kill") -> tuple[int, int]:
    """Run `action` in a forked process with a fault; return its exit code and how many calls it made."""
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        code, leave, tell, fault = 99, os._exit, os.write, None
        try:
            files.CHUNK = 1000
            fault = Fault(at, mode)
            action()
            code = 0
        except StorageError as error:
            code = REFUSED if "No space left on device; free space" in str(error) else 98
        finally:
            tell(send, str(fault.count if fault else 0).encode())
            leave(code)
    os.close(send)
    _, status = os.waitpid(child, 0)
    calls = int(os.read(receive, 20) or b"0")
    os.close(receive)
    return os.waitstatus_to_exitcode(status), calls


@pytest.mark.parametrize("mode", ["kill", "tear", "full", "dead"])
@pytest.mark.parametrize("before", [None, OLD], ids=["first", "replacing"])
def test_a_write_that_fails_at_any_call_leaves_the_old_or_the_new(tmp_path, before, mode):
    def prepare(folder: Path) -> Path:
        path = folder / "run" / "step-1"
        if before is not None:
            write(path, before)
        return path

    code, calls = in_child(lambda: write(prepared, NEW)) if (prepared := prepare(tmp_path / "count")) else (1, 0)
    assert code == 0
    assert calls >= 25
    seen = []
    for k in range(1, calls + 1):
        path = prepare(tmp_path / str(k))
        code, _ = in_child(lambda path=path: write(path, NEW), k, mode)
        found = contents(path)
        assert found in (before, NEW), f"call {k}"
        assert code in ({KILLED} if mode in ("kill", "tear") else {0, REFUSED}), f"call {k}"
        if code == REFUSED and mode == "full":
            assert found == before, f"call {k}: refused, so the old one must stay"
            assert not path.parent.exists() or os.listdir(path.parent) == ([] if before is None else ["step-1"])
        if code == 0:
            assert found == NEW
        assert storage.newest_valid(path.parent, kind="snapshot") == (path if found else None, [])
        storage.sweep(path.parent)
        assert contents(path) == found
        write(path, OLD | {"next": b"1"})
        assert contents(path) == OLD | {"next": b"1"}
        assert os.listdir(path.parent) == ["step-1"], "sweep and the next write leave nothing behind"
        seen.append(found == NEW)
    assert any(seen) or mode == "dead"
    assert not all(seen)
    assert mode == "full" or seen == sorted(seen), "once the new one is there, it stays"


@pytest.mark.parametrize("mode", ["kill", "tear", "full", "dead"])
def test_a_write_after_a_crash_survives_a_crash(tmp_path, mode):
    def prepare(folder: Path) -> Path:
        write(folder / "step-1", OLD)
        os.rename(folder / "step-1", folder / ".step-1.rankwise-old")
        shutil.copytree(folder / ".step-1.rankwise-old", folder / ".step-1.rankwise-tmp-1-0123abcd")
        return folder / "step-1"

    counted = prepare(tmp_path / "count")
    code, calls = in_child(lambda: write(counted, NEW))
    assert code == 0
    for k in range(1, calls + 1):
        path = prepare(tmp_path / str(k))
        in_child(lambda path=path: write(path, NEW), k, mode)
        assert contents(path) in (OLD, NEW), f"call {k}"
        storage.sweep(path.parent)
        assert contents(path) in (OLD, NEW)
        assert os.listdir(path.parent) == ["step-1"]


def test_the_order_of_syncs_survives_a_power_loss(tmp_path, monkeypatch):
    """A kill loses nothing the system has taken; a power loss does, so what is synced when is checked by the calls."""
    write(tmp_path / "run" / "step-1", OLD)
    log: list[tuple[str, str]] = []
    fsync, rename = os.fsync, os.rename

    def seen_fsync(descriptor: int) -> None:
        log.append(("sync", Path(f"/proc/self/fd/{descriptor}").readlink().name.split(".rankwise-tmp")[0]))
        fsync(descriptor)

    def seen_rename(source: Path, target: Path) -> None:
        log.append(("rename", Path(target).name.split(".rankwise-tmp")[0]))
        rename(source, target)

    monkeypatch.setattr(os, "fsync", seen_fsync)
    monkeypatch.setattr(os, "rename", seen_rename)
    write(tmp_path / "run" / "step-1", NEW)
    assert log == [
        *[("sync", name) for name in ("a.bin", "b.json", "c.bin", "manifest.json")],
        ("sync", ".step-1"),
        ("rename", ".step-1.rankwise-old"),
        ("rename", "step-1"),
        ("sync", "run"),
        ("rename", "..step-1.rankwise-old"),
    ]
    log.clear()
    write(tmp_path / "a" / "b" / "step-1", {})
    assert log[:2] == [("sync", tmp_path.name), ("sync", "a")], "the entries of new parents are synced too"


def test_a_write_needs_no_sweep_after_a_kill_before_the_old_one_was_removed(tmp_path):
    write(tmp_path / "step-1", OLD)
    shutil.copytree(tmp_path / "step-1", tmp_path / ".step-1.rankwise-old")
    write(tmp_path / "step-1", NEW)
    assert contents(tmp_path / "step-1") == NEW
    assert os.listdir(tmp_path) == ["step-1"]


@pytest.mark.parametrize("limit", ["file size", "descriptors"])
def test_limits_of_the_process_are_named_and_harm_nothing(tmp_path, limit):
    path = tmp_path / "step-1"
    write(path, OLD)

    def action() -> None:
        if limit == "file size":
            resource.setrlimit(resource.RLIMIT_FSIZE, (1500, 1500))
        else:
            resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))
        with pytest.raises(StorageError, match="raise its limit" if limit == "file size" else "too many open files"):
            write(path, NEW)

    assert in_child(action)[0] == 0
    assert contents(path) == OLD
    storage.sweep(tmp_path)
    assert os.listdir(tmp_path) == ["step-1"]


def test_a_reader_finds_a_whole_folder_while_another_process_replaces_it(tmp_path):
    path = tmp_path / "step-1"
    write(path, OLD)
    child = os.fork()
    if child == 0:
        try:
            for turn in range(10_000):
                write(path, OLD if turn % 2 else NEW)
        finally:
            os._exit(1)
    try:
        end, reads = time.monotonic() + 1.0, 0
        while time.monotonic() < end:
            assert set(storage.read_folder(path, kind="snapshot")) in (set(OLD), set(NEW))
            reads += 1
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
    assert reads > 20
    assert contents(path) in (OLD, NEW)
