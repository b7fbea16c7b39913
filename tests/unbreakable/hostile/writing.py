"""How a case gets into its folder: a file alone, or a copy of something sound that is altered."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rankwise.storage import MANIFEST, write_folder

from .case import Case, Write

Alter = Callable[[Path], object]
"""Does something to the folder of a case."""
Edit = Callable[[Any], object]
"""Changes a record in place."""


def alone(name: str, make: Alter) -> Write:
    """One path, made by `make`."""

    def write(folder: Path) -> str:
        make(folder / name)
        return name

    return write


def written(name: str, data: bytes | str) -> Write:
    """One file."""
    text = data if isinstance(data, bytes) else data.encode("utf-8", "surrogatepass")
    return alone(name, lambda path: path.write_bytes(text))


def laid(files: Mapping[str, bytes], *alters: Alter) -> Write:
    """A folder `it` of these files, then altered."""

    def write(folder: Path) -> str:
        for name, data in files.items():
            (folder / "it" / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "it" / name).write_bytes(data)
        for alter in alters:
            alter(folder / "it")
        return "it"

    return write


def altered(source: Path, *alters: Alter) -> Write:
    """A copy of a folder under its own name, then altered."""

    def write(folder: Path) -> str:
        place = Path(shutil.copytree(source, folder / source.name))
        for alter in alters:
            alter(place)
        return place.name

    return write


def sealed(place: Path, kind: str = "adapter") -> None:
    """Give a folder a manifest that agrees with its files: whoever writes them writes that too."""
    files = {file.name: file.read_bytes() for file in place.iterdir() if file.name != MANIFEST}
    shutil.rmtree(place)
    write_folder(place, files, kind=kind)


def unsealed(place: Path) -> None:
    """Take its manifest away: another program wrote these files."""
    for name in (MANIFEST, "provenance.json"):
        (place / name).unlink(missing_ok=True)


def holding(name: str, data: bytes) -> Alter:
    """Let a file hold these bytes."""
    return lambda place: (place / name).write_bytes(data)


def edited(name: str, edit: Edit) -> Alter:
    """Change the record in a JSON file."""

    def alter(place: Path) -> None:
        record = json.loads((place / name).read_text())
        edit(record)
        (place / name).write_text(json.dumps(record))

    return alter


def put(*path: str | int, value: Any) -> Edit:
    """Put a value at a place of a record."""

    def edit(record: Any) -> None:
        for word in path[:-1]:
            record = record[word]
        record[path[-1]] = value

    return edit


def instead(name: str, make: Alter) -> Alter:
    """Make something else in the place of a file."""

    def alter(place: Path) -> None:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).unlink(missing_ok=True)
        make(place / name)

    return alter


def link(name: str, target: str) -> Alter:
    """Let a file be a link."""
    return instead(name, lambda path: path.symlink_to(target))


def misplaced(source: Path, kind: str, name: str) -> Iterator[Case]:
    """A file of a folder that is elsewhere, or no file."""
    for target in ("/etc/passwd", f"../../outside/{source.name}/{name}", "/dev/zero"):
        yield Case(f"{source.name}/{name} leads to {target}", kind, altered(source, link(name, target)), True)
    yield Case(f"{source.name}/{name} is a pipe", kind, altered(source, instead(name, os.mkfifo)), True)
