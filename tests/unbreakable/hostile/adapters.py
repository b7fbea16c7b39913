"""Adapters of ours: the record beside the tensors, and the folder."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rankwise.storage import MANIFEST

from .case import CANARY, ODD, STALL, Case
from .records import Odd, broken_json, quoted
from .writing import Alter, Edit, altered, edited, holding, instead, link, put, sealed

METHODS: tuple[Any, ...] = ("nope", CANARY, "../lora", "__init__", "", None, 3, ["lora"], "x" * 10_000)
HARMLESS = ("branch {}", "sites []", "format True")
"""What is odd in other keys and sound in these: True is 1."""
SITE = ("name", "kind", "n_in", "n_out", "scale", "behind", "blocks")
SITE_VALUES = quoted(None, "x", -1, 10**30, [], {}, 1e400)
BLOCKS = quoted(
    None, [1], [{}], [{"label": "a", "size": 2**40, "live": True}], [{"label": "a", "size": -1, "live": True}]
)
BLOCK = (("label", {}), ("label", "x" * 10**6), ("size", 10**12), ("size", "8"), ("live", "yes"))
BRANCH = Odd(
    ("gate", "form", "init", "scale", "dropout"),
    quoted(STALL, {STALL: 1}, 10**30, None, [CANARY]),
    "branch {key} {word}",
    ("branch",),
)


def adapters(sound: Path) -> Iterator[Case]:
    """All of them."""
    ours = sound / "ours"
    for name, data in broken_json((ours / "adapter.json").read_bytes()).items():
        yield case(ours, name, holding("adapter.json", data), True)
    for name, edit, refused in (*heads(), *sites()):
        yield case(ours, name, edited("adapter.json", edit), refused)
    for file in ("/etc/passwd", "../../outside/ours/adapter.safetensors"):
        yield Case(f"adapter/link {file}", "adapter", altered(ours, link("adapter.safetensors", file)), True)
    for name, make in (("a pipe", os.mkfifo), ("a folder for a file", os.mkdir)):
        yield Case(f"adapter/{name}", "adapter", altered(ours, instead("adapter.safetensors", make)), True)
    yield Case("adapter/manifest names another folder", "adapter", altered(ours, other_manifest), True)


def case(ours: Path, name: str, alter: Alter, refused: bool | None) -> Case:
    return Case(f"adapter/record/{name}", "adapter", altered(ours, alter, sealed), refused)


def heads() -> Iterator[tuple[str, Edit, bool | None]]:
    """Changes at the top of a record."""
    for method in METHODS:
        yield f"method {str(method)[:20]!r} {type(method).__name__}", put("method", value=method), True
    for name, edit, _ in Odd(("branch", "base", "sites", "format"), quoted(*ODD)).edits():
        yield name, edit, None if name in HARMLESS else True


def sites() -> Iterator[tuple[str, Edit, bool | None]]:
    """Changes of the first site, of its blocks, of the branch and of the list of sites."""
    for key in SITE:
        yield from Odd((key,), SITE_VALUES, "site {key} {word}", ("sites", 0)).edits()
        yield f"site without {key}", lambda record, key=key: record["sites"][0].pop(key), None
    yield from Odd(("blocks",), BLOCKS, within=("sites", 0), refused=True).edits()
    for key, value in BLOCK:
        yield f"block {key} {str(value)[:20]!r}", put("sites", 0, "blocks", 0, key, value=value), None
    yield from BRANCH.edits()
    yield "sites named twice", lambda record: record["sites"].append(record["sites"][0]), None
    yield "20,000 sites", lambda record: record["sites"].extend(record["sites"][:1] * 20_000), None
    yield "site called by a regular expression", put("sites", 0, "name", value=STALL), True


def other_manifest(place: Path) -> None:
    """Let the manifest name a file of another folder."""
    manifest = json.loads((place / MANIFEST).read_text())
    manifest["files"]["../../outside/ours/adapter.safetensors"] = manifest["files"].pop("adapter.safetensors")
    (place / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n")
