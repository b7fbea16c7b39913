"""Saved folders: what is written comes back, and every alteration is found by name."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from rankwise import storage
from rankwise.errors import StorageError

OLD = {"a.bin": b"old" * 700, "b.json": b"{}"}
NEW = {"a.bin": b"new" * 700, "b.json": b'{"n": 1}', "c.bin": b""}


def contents(path: Path, kind: str = "snapshot") -> dict[str, bytes]:
    """What a reader finds: the files' bytes."""
    return {name: file.read_bytes() for name, file in storage.read_folder(path, kind=kind).items()}


def write(path: Path, content: Mapping[str, bytes]) -> None:
    storage.write_folder(path, content, kind="snapshot")


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


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENOMEM, errno.EACCES, errno.EIO])
def test_what_cannot_be_read_now_is_not_passed_over_for_an_older_one(tmp_path, monkeypatch, code):
    """A lack of descriptors is not damage; a sector that is gone is."""
    for name in ("step-1", "step-2"):
        storage.write_folder(tmp_path / name, {"a.bin": b"a"}, kind="snapshot")
    real = storage.opened

    def fails(path, flags):
        if path.name == "step-2":
            raise OSError(code, os.strerror(code))
        return real(path, flags)

    monkeypatch.setattr(storage, "opened", fails)
    if code == errno.EIO:
        found, refused = storage.newest_valid(tmp_path, kind="snapshot")
        assert (found, len(refused)) == (tmp_path / "step-1", 1)
    else:
        with pytest.raises(StorageError, match=os.strerror(code)):
            storage.newest_valid(tmp_path, kind="snapshot")
