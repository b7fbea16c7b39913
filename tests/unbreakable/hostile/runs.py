"""Folders of runs."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .case import CANARY, Case
from .records import broken_json
from .writing import Alter, altered, edited, holding, instead, link, put, sealed

Changes = Iterator[tuple[str, Alter, bool | None]]
"""(name, what is done to the folder, whether it must be refused)."""
SNAPSHOTS = "checkpoints"
UNDO = {"task": "a", "number": 1, "events": 0}
ODD_UNDO = (("number", 10**30), ("number", "x"), ("events", -5), ("events", 10**30), ("events", None))
PIPES = ("adapter/adapter.json", "adapter/adapter.safetensors", "config.toml", "environment.json", "events.jsonl")


def runs(sound: Path) -> Iterator[Case]:
    """All of them."""
    for name, alter, refused in (*records(), *snapshots(), *configs()):
        yield Case(f"run/{name}", "run", altered(sound / "run", alter), refused)
    for file in PIPES:
        write = altered(sound / "run", instead(file, os.mkfifo))
        yield Case(f"run/{Path(file).name} is a pipe", "run", write, True)


def records() -> Changes:
    """The records of a run."""
    for file in ("environment.json", "undo.json"):
        for name, data in broken_json(json.dumps(UNDO).encode()).items():
            if name != "many empty lists":
                yield f"{file} {name}", holding(file, data), True
    for key, value in ODD_UNDO:
        undo = holding("undo.json", json.dumps({**UNDO, key: value}).encode())
        yield f"undo {key} {value}", undo, None if value == 10**30 else True
    for name, data in broken_json(b'{"event": "task", "task": "a"}').items():
        yield f"events {name}", holding("events.jsonl", data + b"\n"), None


def snapshots() -> Changes:
    """Its snapshots, and what is in them."""
    for name in ("step-" + "9" * 200, "step--1", "step-00000001x", "step-\u0661"):
        yield f"snapshot called {name[:20]}", lambda place, name=name: (place / SNAPSHOTS / name).mkdir(), None
    yield "snapshot leads outside", link(f"{SNAPSHOTS}/step-99999999", "../../../outside/ours"), None
    yield "snapshots lead outside", snapshots_outside, True
    for key in ("progress", "learner", "events", "kept"):
        for value in (None, "x", [], {}, 10**30, {"task": "x"}):
            yield f"state {key} {value!r}", newest(key, value), None


def snapshots_outside(place: Path) -> None:
    shutil.rmtree(place / SNAPSHOTS)
    (place / SNAPSHOTS).symlink_to("../../outside")


def newest(key: str, value: Any) -> Alter:
    """The newest snapshot with something odd in it, and a manifest that agrees."""

    def alter(place: Path) -> None:
        snapshot = sorted((place / SNAPSHOTS).iterdir())[-1]
        edited("state.json", put(key, value=value))(snapshot)
        sealed(snapshot, "snapshot")

    return alter


def configs() -> Changes:
    """Its config."""
    method = 'method = "lora"'
    yield "config of another method", swapped(method, 'method = "mora"'), None
    yield "config of a canary", swapped(method, f'method = "{CANARY}"'), True
    yield "config names an outer base", swapped("embedded:vit", "../../outside/base"), True


def swapped(old: str, new: str) -> Alter:
    """Say something else in the config."""

    def alter(place: Path) -> None:
        text = (place / "config.toml").read_text()
        assert old in text
        (place / "config.toml").write_text(text.replace(old, new))

    return alter
