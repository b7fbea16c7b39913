"""Saved folders: whole or not at all at every call of a write, and every alteration found by name."""

from __future__ import annotations

import contextlib
import errno
import json
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


def contents(path: Path, kind: str = "snapshot") -> dict[str, bytes] | None:
    """What a reader finds: the files' bytes, or None if there is no folder."""
    if not path.exists() and not storage._aside(path).exists():
        return None
    return {name: file.read_bytes() for name, file in storage.read_folder(path, kind=kind).items()}


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


# What is written.


def test_the_bytes_come_back_and_the_manifest_is_reproducible(tmp_path):
    for name in ("one", "two"):
        storage.write_folder(tmp_path / name, NEW, kind="adapter")
        assert contents(tmp_path / name, "adapter") == NEW
    manifests = [(tmp_path / name / "manifest.json").read_bytes() for name in ("one", "two")]
    assert manifests[0] == manifests[1]
    assert json.loads(manifests[0])["files"]["b.json"]["size"] == len(NEW["b.json"])
    assert sorted(os.listdir(tmp_path)) == ["one", "two"]


def test_a_writer_function_streams_large_files(tmp_path):
    block = os.urandom(300_000)

    def stream(file) -> None:
        for _ in range(10):
            file.write(block)

    storage.write_folder(tmp_path / "x", {"big": stream}, kind="snapshot")
    assert contents(tmp_path / "x") == {"big": block * 10}


def test_an_error_in_a_writer_function_passes_through_and_leaves_the_old(tmp_path):
    write(tmp_path / "x", OLD)

    def broken(file) -> None:
        file.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        storage.write_folder(tmp_path / "x", {"a.bin": broken}, kind="snapshot")
    assert contents(tmp_path / "x") == OLD
    assert os.listdir(tmp_path) == ["x"]


@pytest.mark.parametrize(
    "name", ["../evil", "a/b", "", ".", "..", ".hidden", "manifest.json", "/abs", "a\nb", "a" * 300]
)
def test_names_that_could_leave_the_folder_are_refused(tmp_path, name):
    with pytest.raises(StorageError, match="cannot name a saved file"):
        write(tmp_path / "x", {name: b""})
    assert os.listdir(tmp_path) == []


def test_what_was_not_saved_here_is_never_replaced(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("ten years")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "thesis")
    for name, reason in [("thesis", "holds 'chapter.tex'"), ("file", "not a folder"), ("link", "not a folder")]:
        with pytest.raises(StorageError, match=reason):
            write(tmp_path / name, NEW)
    assert (tmp_path / "thesis" / "chapter.tex").read_text() == "ten years"
    assert sorted(os.listdir(tmp_path)) == ["file", "link", "thesis"]
    write(tmp_path / "saved", OLD)
    (tmp_path / "saved" / "notes.txt").write_text("mine")
    with pytest.raises(StorageError, match=r"holds 'notes\.txt'"):
        write(tmp_path / "saved", NEW)


def test_a_torn_folder_of_ours_can_be_written_again(tmp_path):
    write(tmp_path / "x", OLD)
    (tmp_path / "x" / "manifest.json").write_bytes(b"{")
    write(tmp_path / "x", NEW)
    assert contents(tmp_path / "x") == NEW


def test_a_parent_that_is_a_file_is_named(tmp_path):
    (tmp_path / "f").write_text("")
    with pytest.raises(StorageError, match="step-1: cannot be written"):
        write(tmp_path / "f" / "step-1", NEW)


# What is refused.


def edit(path: Path, change: Callable[[dict], object]) -> None:
    """Alter a manifest and write it in the exact form of the package."""
    manifest = json.loads(path.read_bytes())
    change(manifest)
    path.write_bytes(json.dumps(manifest, indent=1, sort_keys=True).encode() + b"\n")


def flip(path: Path, byte: int = 5, bit: int = 3) -> None:
    data = bytearray(path.read_bytes())
    data[byte] ^= 1 << bit
    path.write_bytes(data)


def link(path: Path) -> None:
    """Replace a file by a link to its own bytes elsewhere."""
    path.rename(path.parent.parent / "elsewhere")
    path.symlink_to(path.parent.parent / "elsewhere")


CORRUPTIONS: dict[str, tuple[Callable[[Path], object], str]] = {
    "file missing": (lambda p: (p / "a.bin").unlink(), "a.bin: is missing"),
    "file truncated": (lambda p: os.truncate(p / "a.bin", 99), "a.bin: has 99 bytes, its manifest says 2100"),
    "file one bit flipped": (lambda p: flip(p / "a.bin"), "a.bin: its SHA-256 differs"),
    "empty file filled": (lambda p: (p / "c.bin").write_bytes(b"1"), "c.bin: has 1 bytes"),
    "manifest missing": (lambda p: (p / "manifest.json").unlink(), "manifest.json: cannot be read: No such file"),
    "manifest truncated": (lambda p: os.truncate(p / "manifest.json", 80), "manifest.json: is not valid JSON"),
    "manifest empty": (lambda p: os.truncate(p / "manifest.json", 0), "manifest.json: is not valid JSON"),
    "manifest one bit flipped": (lambda p: flip(p / "manifest.json", -2), "manifest.json: is not valid JSON"),
    "manifest of others": (lambda p: (p / "manifest.json").write_text("[]"), "manifest.json: is not a manifest"),
    "manifest too large": (lambda p: (p / "manifest.json").write_bytes(b" " * (5 << 20)), "manifest.json: is larger"),
    "manifest nested": (lambda p: (p / "manifest.json").write_bytes(b"[" * 999_999), "manifest.json: is nested too"),
    "wrong kind": (lambda p: edit(p / "manifest.json", lambda m: m.update(kind="adapter")), "of kind 'adapter'"),
    "wrong version": (lambda p: edit(p / "manifest.json", lambda m: m.update(version=2)), "format version '2'"),
    "version of another type": (lambda p: edit(p / "manifest.json", lambda m: m.update(version=True)), "was altered"),
    "unknown key": (lambda p: edit(p / "manifest.json", lambda m: m.update(more=1)), "manifest.json: is not as it was"),
    "no files": (lambda p: edit(p / "manifest.json", lambda m: m.update(files=[])), "manifest.json: is not as it was"),
    "file list cut": (lambda p: edit(p / "manifest.json", lambda m: m["files"].pop("a.bin")), "a.bin: does not belong"),
    "size as a float": (
        lambda p: edit(p / "manifest.json", lambda m: m["files"]["a.bin"].update(size=2100.0)),
        "a.bin must have exactly",
    ),
    "name with ..": (
        lambda p: edit(p / "manifest.json", lambda m: m["files"].update({"../step-1/a.bin": m["files"]["a.bin"]})),
        "'../step-1/a.bin', which is not a plain file name",
    ),
    "absolute name": (
        lambda p: edit(p / "manifest.json", lambda m: m["files"].update({"/etc/passwd": m["files"]["a.bin"]})),
        "'/etc/passwd', which is not a plain file name",
    ),
    "extra file": (lambda p: (p / "extra").write_text(""), "extra: does not belong there"),
    "extra folder": (lambda p: (p / "extra").mkdir(), "extra: is a link or a folder"),
    "extra pipe": (lambda p: os.mkfifo(p / "extra"), "extra: is a link or a folder"),
    "linked file": (lambda p: link(p / "a.bin"), "a.bin: is a link"),
    "linked manifest": (lambda p: link(p / "manifest.json"), "manifest.json: is a link"),
}


@pytest.mark.parametrize("case", CORRUPTIONS)
def test_corruptions_are_named_and_the_previous_good_one_is_used(tmp_path, case):
    corrupt, reason = CORRUPTIONS[case]
    for number in (1, 2, 10):
        write(tmp_path / f"step-{number}", NEW)
    corrupt(tmp_path / "step-10")
    with pytest.raises(StorageError) as caught:
        storage.read_folder(tmp_path / "step-10", kind="snapshot")
    assert reason in str(caught.value)
    assert str(tmp_path / "step-10") in str(caught.value)
    found, refused = storage.newest_valid(tmp_path, kind="snapshot", pattern="step-*")
    assert found == tmp_path / "step-2"
    assert refused == [f"refused {caught.value}"]


def test_a_change_of_any_byte_is_found(tmp_path):
    write(tmp_path / "x", {"a.bin": b"abc", "b": b"\n"})
    tried = 0
    for file in sorted((tmp_path / "x").iterdir()):
        data = file.read_bytes()
        for byte in range(len(data)):
            for mask in (0x01, 0x20, 0x07, 0xFF):
                file.write_bytes(data[:byte] + bytes([data[byte] ^ mask]) + data[byte + 1 :])
                with pytest.raises(StorageError):
                    storage.read_folder(tmp_path / "x", kind="snapshot")
                tried += 1
        file.write_bytes(data)
    assert tried > 1000
    assert contents(tmp_path / "x") == {"a.bin": b"abc", "b": b"\n"}


def test_a_missing_folder_and_a_folder_of_another_kind(tmp_path):
    with pytest.raises(StorageError, match="nothing-here: there is no such folder"):
        storage.read_folder(tmp_path / "nothing-here", kind="snapshot")
    storage.write_folder(tmp_path / "x", NEW, kind="adapter")
    with pytest.raises(StorageError, match="of kind 'adapter'; 'snapshot' was asked for"):
        storage.read_folder(tmp_path / "x", kind="snapshot")


# Which one is read, and what is swept.


def test_the_newest_is_chosen_by_number_not_by_name_or_time(tmp_path):
    for name in ("step-10", "step-9", "step-009x", "other-99", "step-100"):
        write(tmp_path / name, OLD)
    os.rename(tmp_path / "step-100", tmp_path / ".step-100.rankwise-tmp-1-0123abcd")
    assert storage.newest_valid(tmp_path, kind="snapshot", pattern="step-*") == (tmp_path / "step-10", [])
    assert storage.newest_valid(tmp_path, kind="snapshot") == (tmp_path / "other-99", [])
    assert storage.newest_valid(tmp_path / "none", kind="snapshot") == (None, [])


def test_every_refused_one_has_its_line_and_links_are_refused(tmp_path):
    for number in (1, 2, 3):
        write(tmp_path / f"step-{number}", OLD)
    (tmp_path / "step-3" / "a.bin").unlink()
    (tmp_path / "step-2" / "new\nline").write_text("")
    (tmp_path / "step-4").symlink_to(tmp_path / "step-1")
    (tmp_path / "step-5").write_text("a file")
    found, refused = storage.newest_valid(tmp_path, kind="snapshot", pattern="step-*")
    assert found == tmp_path / "step-1"
    reasons = [
        "step-5: there is no such folder",
        "step-4: is a link",
        "a.bin: is missing",
        "new\\nline: does not belong",
    ]
    assert all(reason in line for reason, line in zip(reasons, refused, strict=True))
    assert not any("\n" in line for line in refused)


def test_sweep_removes_leftovers_only(tmp_path):
    write(tmp_path / "step-1", OLD)
    write(tmp_path / "step-2", OLD)
    os.rename(tmp_path / "step-2", tmp_path / ".step-2.rankwise-old")
    shutil.copytree(tmp_path / "step-1", tmp_path / ".step-1.rankwise-old")
    shutil.copytree(tmp_path / "step-1", tmp_path / ".step-3.rankwise-tmp-12-0123abcd")
    (tmp_path / ".results.json.rankwise-tmp-12-0123abcd").write_text("half")
    for kept in (".git", ".config.old", "notes.tmp"):
        (tmp_path / kept).mkdir()
    removed = storage.sweep(tmp_path)
    assert removed == [".results.json.rankwise-tmp-12-0123abcd", ".step-3.rankwise-tmp-12-0123abcd"]
    assert sorted(os.listdir(tmp_path)) == [".config.old", ".git", "notes.tmp", "step-1", "step-2"]
    assert contents(tmp_path / "step-2") == OLD
    assert storage.sweep(tmp_path / "none") == []
