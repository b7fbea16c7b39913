"""Single files, written all or nothing and read within limits; `storage.py` builds whole folders from these.

Every function raises StorageError with the file, the system's reason and a remedy. A file's temporary sibling is named
`.<name>.rankwise-tmp-<pid>-<token>`, so what a killed writer left can be told from everything else (`storage.sweep`).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import shutil
import stat
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from rankwise.errors import StorageError

CHUNK = 1 << 20  # bytes a write or read call
MAX_JSON = 4 << 20  # bytes of JSON read by default; parsed, hostile JSON can take 30 times as much memory
LARGEST_RECORD = 1 << 30  # bytes of environment.json: it lists every validation row, and a stream may have millions
TEMPORARY = ".rankwise-tmp-"

Content = bytes | Callable[[BinaryIO], None]
"""A file's bytes, or a function that writes them to the open (unseekable) file it is given."""

_REMEDIES = {
    errno.ENOENT: "check the path; a part of a saved folder that is missing cannot be rebuilt",
    errno.ENOSPC: "free space on the disk or choose another folder",
    errno.EDQUOT: "the disk quota is used up: free space or choose another folder",
    errno.EFBIG: "the process may not write files that large: raise its limit (ulimit -f)",
    errno.EACCES: "check the permissions of the folder or choose another one",
    errno.EPERM: "check the permissions of the folder or choose another one",
    errno.EROFS: "the disk is read-only: choose another folder",
    errno.EMFILE: "too many open files: raise the limit (ulimit -n)",
}


def write_file(path: Path, data: bytes) -> None:
    """Write one file all or nothing: temporary sibling, sync, rename, sync of the folder.

    On an error the old one stays; but after the rename (the last sync failed) the new one is there already.
    """
    with explained(path, "cannot be written"):
        make_folder(path.parent)
        clear(path)
        temporary = temporary_name(path)
        try:
            write_new(temporary, data)
            os.rename(temporary, path)
            sync_folder(path.parent)
        finally:
            remove(temporary)


def append_line(path: Path, text: str) -> int:
    """Append one line to a log and sync it; return the log's size, an offset for `truncate`.

    A line torn by a kill (no newline at the end) is cut off first; on an error the log keeps its whole lines only.
    """
    if "\n" in text or "\r" in text:
        raise StorageError(f"{path}: the line {text[:40]!r} contains a line break; encode it, e.g. as JSON")
    with explained(path, "cannot be appended to"):
        new = not path.exists()
        with opened(path, os.O_RDWR | os.O_CREAT) as descriptor:
            size = _append(descriptor, text.encode() + b"\n")
        if new:
            sync_folder(path.parent)
        return size


def truncate(path: Path, size: int) -> None:
    """Cut a log back to `size` bytes, e.g. to what the snapshot being resumed had recorded; refuses a shorter log."""
    with explained(path, "cannot be cut"), opened(path, os.O_RDWR) as descriptor:
        found = os.fstat(descriptor).st_size
        if not 0 <= size <= found:
            raise StorageError(f"{path}: holds {found} bytes but {size} were recorded; restore it from a copy")
        os.ftruncate(descriptor, size)
        os.fsync(descriptor)


def check_plain(path: Path, root: Path | None = None) -> None:
    """Refuse what is no plain file (a pipe, a device) and, with `root`, a link that leads out of that folder.

    A snapshot in the cache of the Hugging Face hub may link to the blobs beside it. Raises StorageError.
    """
    with explained(path, "cannot be read"):
        if not stat.S_ISREG(path.stat().st_mode):
            raise StorageError(f"{path}: is no plain file; put a copy of the file itself there")
        if root is None:
            return
        real, top = path.resolve(), root.resolve()
    blobs = top.parent.parent / "blobs" if top.parent.name == "snapshots" else top
    if not real.is_relative_to(top) and real.parent != blobs:
        raise StorageError(f"{path}: is a link that leads out of its folder; put a copy of the file itself there")


def read_limited(path: Path, max_bytes: int) -> bytes:
    """Read a whole file of at most `max_bytes`; a larger one is refused before more is read."""
    check_plain(path)
    with explained(path, "cannot be read"), path.open("rb") as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise StorageError(f"{path}: is larger than the {max_bytes} bytes allowed here; it is not what it should be")
    return data


def load_json(path: Path, max_bytes: int = MAX_JSON) -> Any:
    """Read a JSON file of at most `max_bytes`, strictly (see `parse_json`)."""
    return parse_json(read_limited(path, max_bytes), str(path))


def load_object(path: Path, max_bytes: int = MAX_JSON, *, keys: Iterable[str] = ()) -> dict[str, Any]:
    """Read a JSON file that must hold an object with (at least) `keys`; see `load_json`."""
    found = load_json(path, max_bytes)
    missing = sorted(set(keys) - found.keys()) if isinstance(found, dict) else []
    if not isinstance(found, dict) or missing:
        what = f"lacks {missing[0]!r}" if missing else "is no JSON object"
        raise StorageError(f"{path}: {what}; it was altered: restore it from a copy")
    return found


def parse_json(data: bytes, where: str) -> Any:
    """Parse UTF-8 JSON; duplicate keys, NaN, infinities and endless nesting raise StorageError naming `where`."""
    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except RecursionError as error:
        raise StorageError(f"{where}: is nested too deeply; it was altered") from error
    except ValueError as error:
        raise StorageError(f"{where}: is not valid JSON ({error}); it was truncated or altered") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"duplicate key {key[:80]!r}")
        found[key] = value
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


class HashedFile(io.RawIOBase):
    """An open descriptor as a raw stream that hashes and counts what reaches the system, at most CHUNK bytes a call."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self.descriptor = descriptor
        self.size = 0
        self.hash = hashlib.sha256()

    def writable(self) -> bool:
        """True: the buffer above asks."""
        return True

    def write(self, data: Any, /) -> int:
        """Write the first CHUNK bytes or fewer of `data`; return how many were taken."""
        view = memoryview(data).cast("B")[:CHUNK]
        written = os.write(self.descriptor, view)
        self.hash.update(view[:written])
        self.size += written
        return written


def write_new(path: Path, content: Content) -> dict[str, Any]:
    """Write and sync one new file; return its size in bytes and SHA-256, as taken by the system."""
    with opened(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL) as descriptor, HashedFile(descriptor) as raw:
        buffered = io.BufferedWriter(raw, CHUNK)
        if isinstance(content, bytes):
            buffered.write(content)
        else:
            content(buffered)
        buffered.flush()
        os.fsync(descriptor)
        return {"size": raw.size, "sha256": raw.hash.hexdigest()}


def _append(descriptor: int, line: bytes) -> int:
    """Write `line` after the last whole line and sync; on any failure cut the file back to whole lines."""
    start = position = _whole_size(descriptor)
    with contextlib.ExitStack() as undo:
        undo.callback(os.ftruncate, descriptor, start)
        os.ftruncate(descriptor, start)
        while position < start + len(line):
            position += os.pwrite(descriptor, line[position - start :], position)
        os.fsync(descriptor)
        undo.pop_all()
    return position


def _whole_size(descriptor: int) -> int:
    """Bytes up to and with the last newline."""
    end = os.fstat(descriptor).st_size
    while end > 0:
        start = max(0, end - CHUNK)
        newline = os.pread(descriptor, end - start, start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0


def temporary_name(path: Path) -> Path:
    """A fresh temporary sibling of `path`."""
    return path.with_name(f".{path.name}{TEMPORARY}{os.getpid()}-{uuid.uuid4().hex[:8]}")


def make_folder(folder: Path) -> None:
    """Create a folder and its parents, each entry synced."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Wait until the folder's entries are on the disk."""
    with opened(folder, os.O_RDONLY | os.O_DIRECTORY) as descriptor:
        os.fsync(descriptor)


def remove(leftover: Path) -> None:
    """Remove a file or folder that no reader needs; what cannot be removed now is left to `storage.sweep`."""
    with contextlib.suppress(OSError):
        _remove(leftover)


def discard(path: Path) -> None:
    """Remove a file or folder that no reader may find again, or raise StorageError; what is left is as for `remove`."""
    with explained(path, "cannot be removed"):
        _remove(path)


def clear(path: Path) -> None:
    """Remove what writers of `path` left beside it who are no longer alive."""
    start = f".{path.name}{TEMPORARY}"
    for name in os.listdir(path.parent):
        if name.startswith(start) and not _is_alive(name[len(start) :].partition("-")[0]):
            remove(path.parent / name)


def _remove(path: Path) -> None:
    """Remove a file; rename a folder, as half removed it must not be taken for a saved one, and remove what it can."""
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
        return
    garbage = path
    if TEMPORARY not in path.name:
        garbage = temporary_name(path)
        os.rename(path, garbage)
    with contextlib.suppress(OSError):
        shutil.rmtree(garbage)


def _is_alive(process: str) -> bool:
    """Say whether a process of that number may be there."""
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except (OSError, ValueError, OverflowError):
        return True
    return True


@contextlib.contextmanager
def opened(path: Path, flags: int) -> Iterator[int]:
    """A file descriptor for `path`, closed at the end."""
    descriptor = os.open(path, flags, 0o666)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def explained(path: Path, failure: str) -> Iterator[None]:
    """Turn an OSError into a StorageError with the path, the system's reason and the remedy."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"{path}: {failure}: {error.strerror or error}; {remedy(error)}") from error


def remedy(error: OSError) -> str:
    """Say what to do about an error of the system."""
    return _REMEDIES.get(error.errno or 0, "nothing saved before is lost: settle the cause and try again")
