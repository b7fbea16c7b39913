"""Where an artefact comes from: the base, the data and the artefacts it was made from, and the code that made it.

Every folder that leaves holds `provenance.json`:

    base      name and fingerprint of the pretrained base (SHA-256 over its names, dtypes, shapes and bytes), quantize,
              form (of its language head); without: names of tensors that the fingerprint leaves out
    data      SHA-256 of each stream that was learnt, by content: rows of files, their order, classes; not file names
    parents   SHA-256 of each saved artefact it was made from (of its manifest, which holds those of its files)
    code      version of this package, and SHA-256 over its source files

Nothing else is recorded: no path, no user, no variable of the environment.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from rankwise.files import load_json
from rankwise.storage import MANIFEST
from rankwise.version import __version__

FILE = "provenance.json"
BASE = ("name", "fingerprint", "without", "quantize", "form")
"""What is kept of a base."""


def content(base: Mapping[str, Any], data: Sequence[str], parents: Sequence[str]) -> bytes:
    """Return the bytes of `provenance.json`."""
    kept = {key: base[key] for key in BASE if base.get(key)}
    return json.dumps({"base": kept, "data": [*data], "parents": [*parents], "code": code()}, indent=1).encode()


def of(folder: Path) -> dict[str, Any]:
    """Return what the artefact in `folder` says of itself; {} if it says nothing. Raises StorageError."""
    found = load_json(folder / FILE) if (folder / FILE).is_file() else {}
    return found if isinstance(found, dict) else {}


def data_of(record: Mapping[str, Any]) -> str:
    """Return the SHA-256 of the data behind a stream, from its record: the same wherever its files lie."""
    sources = sorted([str(entry.get("split", "")), str(entry["sha256"])] for entry in record.get("sources", ()))
    tasks = [[task["classes"], task["ids_sha256"]] for task in record.get("tasks", ())]
    return hashlib.sha256(json.dumps([sources, tasks], sort_keys=True).encode()).hexdigest()


def digest(folder: Path) -> str:
    """Return the SHA-256 that stands for a saved folder: of its manifest, or else over the names and bytes of files."""
    if (folder / MANIFEST).is_file():
        return hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()
    return _over(folder, [file for file in folder.iterdir() if file.is_file()])


@cache
def code() -> dict[str, str]:
    """Return the version of this package and the SHA-256 over its source files."""
    package = Path(__file__).parent
    return {"rankwise": __version__, "source": _over(package, package.rglob("*.py"))}


def _over(root: Path, files: Iterable[Path]) -> str:
    total = hashlib.sha256()
    for file in sorted(files):
        with file.open("rb") as opened:
            inside = hashlib.file_digest(opened, "sha256").hexdigest()
        total.update(f"{file.relative_to(root).as_posix()}\0{inside}\n".encode())
    return total.hexdigest()
