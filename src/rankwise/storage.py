"""The one writer for everything saved: a folder appears whole and verifiable, or not at all.

A saved folder is flat: its files and a `manifest.json` with the format's version, the folder's kind and the size and
SHA-256 of every file but `README.md`, which is for people to read and to edit and is read by no program. This is how
`step-7` is written or replaced; the process may die at any call:

    .step-7.rankwise-tmp-<pid>-<token>/      files in chunks, each synced; the manifest last; the folder synced
    step-7 -> .step-7.rankwise-old           only if there is a former step-7
    .step-7.rankwise-tmp-... -> step-7       the rename is the commit; then the parent folder is synced
    .step-7.rankwise-old                     removed

A reader that finds no `step-7` but a `.step-7.rankwise-old` reads that, so it sees the old or the new folder at any
instant. Nothing is unpickled, and nothing in a saved folder can name a file outside it. Each path has one writer at a
time: who writes where others may write too holds a lock.

Single files and logs: `write_file`, `append_line`, `truncate`, `load_json` (from `files.py`); tensors: `save_tensors`,
`tensor_writer`, `load_tensors` (from `tensors.py`). All raise StorageError with the file, the reason and the remedy.
"""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rankwise.errors import StorageError
from rankwise.files import (
    MAX_JSON,
    TEMPORARY,
    Content,
    append_line,
    check_plain,
    clear,
    explained,
    load_json,
    make_folder,
    opened,
    parse_json,
    read_limited,
    remove,
    sync_folder,
    temporary_name,
    truncate,
    write_file,
    write_new,
)
from rankwise.tensors import load_tensors, save_tensors, tensor_writer

__all__ = [
    "Content",
    "append_line",
    "check_listed",
    "load_json",
    "load_tensors",
    "newest_valid",
    "parse_json",
    "read_folder",
    "recover",
    "save_tensors",
    "sweep",
    "tensor_writer",
    "truncate",
    "write_file",
    "write_folder",
]

FORMAT = "rankwise"
VERSION = 1
MANIFEST = "manifest.json"
CARD = "README.md"
"""A file for people, which may be edited: no manifest lists it."""
ASIDE = ".rankwise-old"
DAMAGE = {errno.EIO, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EBADMSG}
"""Errors of the system that say that a saved folder is not whole any more."""
ATTEMPTS = 10  # to read a folder that another process replaces meanwhile

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")


def write_folder(path: Path, files: Mapping[str, Content], *, kind: str) -> None:
    """Write `files` (name -> bytes or writer) as the folder `path` of the given kind, all or nothing.

    A former saved folder at `path` is replaced and stays as it was until the new one is complete on the disk; so it
    does on any error. A folder that this module did not write is never replaced.
    Raises StorageError with the path, the reason and the remedy; what a writer function raises passes through.
    """
    _check_names(path, files)
    with explained(path, "cannot be written"):
        make_folder(path.parent)
        recover(path)
        _check_replaceable(path, files)
        clear(path)
        clear(_aside(path))
        temporary = temporary_name(path)
        try:
            _fill(temporary, files, kind)
            _publish(temporary, path)
        finally:
            remove(temporary)
    remove(_aside(path))


def read_folder(path: Path, *, kind: str) -> dict[str, Path]:
    """Verify the saved folder `path` completely and return its files by name (without the manifest).

    Checks: the manifest (form, version, kind), that exactly the listed files are there, plain files all, and the size
    and SHA-256 of each. Raises StorageError naming the file and the reason. A folder replaced while it is being read is
    read again; the paths returned are those of the folder verified, until it is replaced once more.
    """
    for _ in range(ATTEMPTS):
        with explained(path, "cannot be read"), contextlib.suppress(FileNotFoundError):
            return _verified_unless_replaced(_located(path), kind)
    raise StorageError(f"{path}: was replaced again and again while being read; stop the process that writes it")


def check_listed(path: Path, *, kind: str) -> None:
    """Verify the files that the manifest of `path` lists; others may lie there too, as they do after a hub. See
    `read_folder`, which suffers none."""
    for name, entry in _manifest(path, kind).items():
        check_plain(path / name, path)
        _verify(path / name, entry)


def newest_valid(
    folder: Path, *, kind: str, pattern: str = "*", check: Callable[[Path, Mapping[str, Path]], None] | None = None
) -> tuple[Path | None, list[str]]:
    """Return the valid saved folder with the highest number in `folder`, and one line for each newer one refused.

    A candidate's name matches the glob `pattern` and ends in digits (`step-12`), which are its number. Read the result
    with `read_folder`, which also finds a folder whose replacement was interrupted. `check`, given a whole one and its
    files, may refuse it by a StorageError.
    Raises StorageError where one cannot be read now that may be whole: it must not be passed over for an older one.
    """
    refused: list[str] = []
    for name in _numbered(folder, pattern):
        try:
            if (folder / name).is_symlink():
                raise StorageError(f"{folder / name}: is a link")
            files = read_folder(folder / name, kind=kind)
            if check is not None:
                check(folder / name, files)
        except StorageError as error:
            if _may_pass(error.__cause__):
                raise
            refused.append("refused " + str(error).replace("\n", "\\n"))
        else:
            return folder / name, refused
    return None, refused


def _may_pass(cause: BaseException | None) -> bool:
    """Say whether a folder may be whole though the system could not read it now: no descriptors, memory or rights."""
    return isinstance(cause, OSError) and cause.errno not in DAMAGE


def recover(path: Path) -> None:
    """Settle an interrupted replacement of `path`: put the old folder back if no new one is there, else remove it."""
    aside = _aside(path)
    if not aside.exists():
        return
    with explained(path, "cannot be recovered"):
        if path.exists():
            remove(aside)
        else:
            os.rename(aside, path)
            sync_folder(path.parent)


def sweep(folder: Path) -> list[str]:
    """Remove what killed writers left in `folder`, settle interrupted replacements, return the names removed, sorted.

    Call it only where nobody else is writing: a living writer's temporary folder looks the same.
    """
    with explained(folder, "cannot be cleaned up"):
        names = sorted(os.listdir(folder)) if folder.is_dir() else []
    leftovers = [name for name in names if name.startswith(".") and TEMPORARY in name]
    for name in leftovers:
        remove(folder / name)
    for name in names:
        if (saved := _saved_name(name)) != name and name not in leftovers:
            recover(folder / saved)
    return leftovers


# Writing.


def _fill(temporary: Path, files: Mapping[str, Content], kind: str) -> None:
    os.mkdir(temporary)
    entries = {name: write_new(temporary / name, files[name]) for name in sorted(files)}
    entries.pop(CARD, None)
    write_new(temporary / MANIFEST, _manifest_bytes(kind, entries))
    sync_folder(temporary)


def _publish(temporary: Path, path: Path) -> None:
    """Move the complete temporary folder to `path`; if any call fails, everything is moved back."""
    with contextlib.ExitStack() as undo:
        undo.callback(_move_back, temporary, path)
        if path.exists():
            os.rename(path, _aside(path))
        os.rename(temporary, path)
        sync_folder(path.parent)
        undo.pop_all()


def _move_back(temporary: Path, path: Path) -> None:
    if path.exists() and not temporary.exists():
        os.rename(path, temporary)
    if _aside(path).exists() and not path.exists():
        os.rename(_aside(path), path)


def _manifest_bytes(kind: str, entries: Mapping[str, Any]) -> bytes:
    manifest = {"format": FORMAT, "version": VERSION, "kind": kind, "files": entries}
    return json.dumps(manifest, indent=1, sort_keys=True).encode() + b"\n"


# Reading.


def _verified_unless_replaced(folder: Path, kind: str) -> dict[str, Path]:
    """`_verified`, but FileNotFoundError if another folder stands at `folder` by the time something is found wrong."""
    # While the folder is open here, its number in the file system is not given to another one.
    with opened(folder, os.O_RDONLY | os.O_DIRECTORY) as pinned:
        try:
            return _verified(folder, kind)
        except StorageError as error:
            if os.path.samestat(os.fstat(pinned), folder.stat()):
                raise
            raise FileNotFoundError(str(folder)) from error


def _verified(folder: Path, kind: str) -> dict[str, Path]:
    found = _plain_files(folder)
    entries = _manifest(folder, kind)
    for name in sorted((found | entries.keys()) - {MANIFEST, CARD}):
        if name not in found:
            raise StorageError(f"{folder / name}: is missing, though the manifest lists it")
        if name not in entries:
            raise StorageError(f"{folder / name}: does not belong there: the manifest does not list it; remove it")
        _verify(folder / name, entries[name])
    return {name: folder / name for name in sorted(entries)}


def _manifest(folder: Path, kind: str) -> dict[str, dict[str, Any]]:
    """The manifest's entries by file name; its form is checked to the byte, so any change of it is found."""
    path = folder / MANIFEST
    data = read_limited(path, MAX_JSON)
    manifest = parse_json(data, str(path))
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise StorageError(f"{path}: is not a manifest of this package")
    if manifest.get("version") != VERSION:
        found = str(manifest.get("version"))[:80]
        raise StorageError(f"{path}: has format version {found!r}; this release reads version {VERSION}")
    if manifest.get("kind") != kind:
        found = str(manifest.get("kind"))[:80]
        raise StorageError(f"{path}: describes a folder of kind {found!r}; {kind!r} was asked for")
    entries = manifest.get("files")
    if not isinstance(entries, dict) or data != _manifest_bytes(kind, entries):
        raise StorageError(f"{path}: is not as it was written; it was altered")
    for name, entry in entries.items():
        _check_entry(path, name, entry)
    return entries


def _check_entry(path: Path, name: str, entry: object) -> None:
    if not _NAME.fullmatch(name) or name in (MANIFEST, CARD):
        raise StorageError(f"{path}: lists {name[:80]!r}, which is not a plain file name; it was altered")
    if not isinstance(entry, dict) or entry.keys() != {"size", "sha256"} or type(entry["size"]) is not int:
        raise StorageError(f"{path}: {name} must have exactly a size in bytes and a sha256; it was altered")


def _plain_files(folder: Path) -> set[str]:
    """The names in `folder`; refuses links and anything else that is not a plain file."""
    with explained(folder, "cannot be listed"), os.scandir(folder) as entries:
        found = {entry.name: entry.is_file(follow_symlinks=False) for entry in entries}
    for name, plain in sorted(found.items()):
        if not plain:
            raise StorageError(f"{folder / name}: is a link or a folder; saved folders hold plain files only")
    return set(found)


def _verify(path: Path, entry: Mapping[str, Any]) -> None:
    with explained(path, "cannot be read"), path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size != entry["size"]:
            raise StorageError(f"{path}: has {size} bytes, its manifest says {entry['size']}; it was cut or altered")
        if hashlib.file_digest(file, "sha256").hexdigest() != entry["sha256"]:
            raise StorageError(f"{path}: its SHA-256 differs from the manifest's; it was altered")


def _numbered(folder: Path, pattern: str) -> list[str]:
    """Names (also of folders moved aside) that match `pattern` and end in a number, the highest number first."""
    with explained(folder, "cannot be listed"):
        names = {_saved_name(name) for name in os.listdir(folder)} if folder.is_dir() else set()
    numbers = {name: int(match[0]) for name in names if (match := re.search(r"[0-9]+\Z", name))}
    chosen = [name for name in numbers if fnmatch.fnmatchcase(name, pattern) and not name.startswith(".")]
    return sorted(chosen, key=lambda name: (numbers[name], name), reverse=True)


# Names, folders and reasons.


def _aside(path: Path) -> Path:
    path = path if path.name else path.absolute()  # "." has no name
    return path.with_name(f".{path.name}{ASIDE}")


def _saved_name(name: str) -> str:
    """The name of the folder that was moved aside to `name`; any other name is its own."""
    return name[1 : -len(ASIDE)] if name.startswith(".") and name.endswith(ASIDE) else name


def _located(path: Path) -> Path:
    """Where the folder `path` is to be found now: there, or moved aside by a replacement in progress."""
    for candidate in (path, _aside(path), path):
        if candidate.is_dir():
            return candidate
    raise StorageError(f"{path}: there is no such folder")


def _check_names(path: Path, files: Mapping[str, Content]) -> None:
    for name in files:
        if not _NAME.fullmatch(name) or name == MANIFEST:
            raise StorageError(f"{path}: {name!r} cannot name a saved file; use letters, digits, '.', '_' and '-'")


def _check_replaceable(path: Path, files: Mapping[str, Content]) -> None:
    """Refuse to replace what was not saved here: a link, a file, a folder with files that no manifest of ours lists."""
    if not path.exists() and not path.is_symlink():
        return
    if path.is_symlink() or not path.is_dir():
        raise StorageError(f"{path}: is there already and is not a folder; choose another path")
    others = set(os.listdir(path)) - {MANIFEST, CARD, *files, *_listed(path / MANIFEST)}
    if others:
        raise StorageError(f"{path}: holds {min(others)!r}, which was not saved by this package; choose another path")


def _listed(manifest: Path) -> set[str]:
    """The files that a manifest of this package lists, of any kind and version; none if there is no such manifest."""
    try:
        found = load_json(manifest)
    except StorageError:
        return set()
    files = found.get("files") if isinstance(found, dict) and found.get("format") == FORMAT else None
    return set(files) if isinstance(files, dict) else set()
