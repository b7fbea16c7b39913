"""Single files and logs: whole lines, whole files, strict JSON, also when the process dies in the middle."""

from __future__ import annotations

import errno
import json
import os
import time
from pathlib import Path

import pytest

from rankwise import files
from rankwise.errors import StorageError


def failing(monkeypatch: pytest.MonkeyPatch, name: str, *, half: bool = False) -> None:
    """Let one call of `os` fail with a full disk, writes after taking half of what they were given."""
    real = getattr(os, name)

    def call(*args):
        if half:
            real(args[0], bytes(args[1])[: len(args[1]) // 2], *args[2:])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, name, call)


def test_a_file_is_written_in_new_folders_and_replaced(tmp_path):
    path = tmp_path / "a" / "b" / "results.json"
    for data in (b"one", b"", b"three" * 1_000_000):
        files.write_file(path, data)
        assert path.read_bytes() == data
        assert os.listdir(path.parent) == ["results.json"]


@pytest.mark.parametrize(("name", "half"), [("write", True), ("fsync", False), ("rename", False), ("open", False)])
def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch, name, half):
    path = tmp_path / "results.json"
    files.write_file(path, b"old")
    failing(monkeypatch, name, half=half)
    with pytest.raises(StorageError, match=r"results\.json: cannot be written: No space left on device; free space"):
        files.write_file(path, b"new" * 100)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["results.json"]


def test_a_disk_that_takes_a_few_bytes_a_call(tmp_path, monkeypatch):
    write, pwrite = os.write, os.pwrite
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, bytes(data)[:3]))
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: pwrite(fd, bytes(data)[:3], at))
    entry = files.write_new(tmp_path / "x", b"0123456789")
    assert (tmp_path / "x").read_bytes() == b"0123456789"
    assert entry == {"size": 10, "sha256": "84d89877f0d4041efb6bf91a16f0248f2fd573e6af05c19f96bedb9f882f7882"}
    assert files.append_line(tmp_path / "log", "0123456789") == 11
    assert (tmp_path / "log").read_bytes() == b"0123456789\n"


def test_no_call_writes_more_than_a_chunk(tmp_path, monkeypatch):
    sizes: list[int] = []
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: sizes.append(len(data)) or write(fd, data))
    monkeypatch.setattr(files, "CHUNK", 1000)
    files.write_new(tmp_path / "x", b"a" * 2100)
    assert (tmp_path / "x").read_bytes() == b"a" * 2100
    assert max(sizes) <= 1000


# Logs.


def test_lines_are_appended_and_offsets_returned(tmp_path):
    log = tmp_path / "run" / "events.jsonl"
    log.parent.mkdir()
    assert files.append_line(log, '{"a": 1}') == 9
    assert files.append_line(log, "") == 10
    assert files.append_line(log, "é") == 13
    assert log.read_text("utf-8") == '{"a": 1}\n\né\n'
    files.truncate(log, 9)
    assert files.append_line(log, "b") == 11
    assert log.read_text() == '{"a": 1}\nb\n'


@pytest.mark.parametrize("torn", ["half a li", "x" * 3_000_000])
def test_a_torn_line_is_cut_before_the_next(tmp_path, torn):
    log = tmp_path / "events.jsonl"
    log.write_text("first\n" + torn)
    assert files.append_line(log, "second") == 13
    assert log.read_text() == "first\nsecond\n"
    log.write_text(torn)
    files.append_line(log, "only")
    assert log.read_text() == "only\n"


@pytest.mark.parametrize(("name", "half"), [("pwrite", True), ("fsync", False)])
def test_a_line_that_cannot_be_written_leaves_whole_lines(tmp_path, monkeypatch, name, half):
    log = tmp_path / "events.jsonl"
    files.append_line(log, "first")
    failing(monkeypatch, name, half=half)
    with pytest.raises(StorageError, match=r"events\.jsonl: cannot be appended to: No space left"):
        files.append_line(log, "second")
    assert log.read_text() == "first\n"


def test_a_real_full_device_is_named():
    with pytest.raises(StorageError, match="/dev/full: cannot be appended to"):
        files.append_line(Path("/dev/full"), "line")


def test_line_breaks_and_impossible_cuts_are_refused(tmp_path):
    log = tmp_path / "events.jsonl"
    with pytest.raises(StorageError, match="contains a line break"):
        files.append_line(log, "a\nb")
    assert not log.exists()
    files.append_line(log, "a")
    for size in (3, -1):
        with pytest.raises(StorageError, match=f"holds 2 bytes but {size} were recorded"):
            files.truncate(log, size)
    with pytest.raises(StorageError, match="none: cannot be cut: No such file"):
        files.truncate(tmp_path / "none", 0)


# JSON.


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b'{"a": 1, "b": 2, "a": 3}', "duplicate key 'a'"),
        (b'{"x": {"k": 1, "k": 1}}', "duplicate key 'k'"),
        (b'{"a": NaN}', "NaN is not a JSON number"),
        (b'{"a": -Infinity}', "-Infinity is not a JSON number"),
        (b'{"a": 1', "is not valid JSON"),
        (b"", "is not valid JSON"),
        (b"\xff{}", "is not valid JSON"),
        (b"[" * 500_000, "is nested too deeply"),
        (b'{"a":' * 200_000, "is nested too deeply"),
        (b'{"a": ' + b"9" * 100_000 + b"}", "is not valid JSON"),
    ],
)
def test_json_is_read_strictly(tmp_path, text, reason):
    path = tmp_path / "results.json"
    path.write_bytes(text)
    with pytest.raises(StorageError) as caught:
        files.load_json(path)
    assert reason in str(caught.value)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_json_that_is_too_large_is_not_parsed(tmp_path):
    path = tmp_path / "results.json"
    path.write_text(json.dumps({"a": "x" * 90}))
    assert files.load_json(path, max_bytes=99) == {"a": "x" * 90}
    with pytest.raises(StorageError, match="larger than the 98 bytes"):
        files.load_json(path, max_bytes=98)
    with pytest.raises(StorageError, match="none: cannot be read: No such file"):
        files.load_json(tmp_path / "none")


def test_many_keys_with_a_late_duplicate_are_refused_quickly():
    text = b"{" + b",".join(b'"k%d":0' % i for i in range(200_000)) + b',"k199999":1}'
    start = time.monotonic()
    with pytest.raises(StorageError, match="duplicate key 'k199999'"):
        files.parse_json(text, "here")
    assert time.monotonic() - start < 2
