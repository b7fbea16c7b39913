"""Folders that `datasets` wrote, or so they say."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .case import CANARY, Case, Write
from .records import broken_json
from .writing import Alter, edited, holding, laid

OUTSIDE = [{"filename": "../../outside/saved/data-00000-of-00001.arrow"}]
NO_FEATURE = {"input": {"_type": CANARY}, "target": {"_type": "Value"}}
BROKEN = ("empty", "a list", "nothing", "deep lists", "huge number")


def saved_sets() -> Iterator[Case]:
    """All of them."""
    changes: dict[str, Alter] = {
        "rows outside": said("state.json", _data_files=OUTSIDE),
        "rows of the system": said("state.json", _data_files=[{"filename": "/etc/passwd"}]),
        "no rows": said("state.json", _data_files=[]),
        "indices outside": said("state.json", _indices_data_files=OUTSIDE),
        "format": said("state.json", _format_type=CANARY),
        "feature of a class": said("dataset_info.json", features=NO_FEATURE),
        "feature of a number": said("dataset_info.json", features=3),
        "half of the rows": halved,
    }
    for file in ("state.json", "dataset_info.json"):
        changes |= {f"{file} {name}": holding(file, broken_json(b"{}")[name]) for name in BROKEN}
    for name, alter in changes.items():
        yield Case(f"saved/{name}", "rows", saved(alter), True)
    parts = json.dumps({"splits": ["../../outside/saved"]}).encode()
    yield Case("saved/parts outside", "rows", laid({"dataset_dict.json": parts}), True)


def saved(alter: Alter) -> Write:
    """A set as `datasets` saves it, then altered."""

    def save(place: Path) -> None:
        import datasets

        held = datasets.Dataset.from_dict({"input": ["a", "b"] * 4, "target": ["x", "y"] * 4})
        datasets.disable_progress_bars()
        held.save_to_disk(str(place))

    return laid({}, save, alter)


def said(file: str, **values: Any) -> Alter:
    """Let a record of the set say something else."""
    return edited(file, lambda record: record.update(values))


def halved(place: Path) -> None:
    file = next(place.glob("*.arrow"))
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
