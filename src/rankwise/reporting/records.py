"""A finished run as its files tell it, and the rows of numbers that figures draw."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankwise.errors import DataError
from rankwise.files import LARGEST_RECORD, load_json
from rankwise.learning.ledger import Ledger
from rankwise.reporting.compare import LARGEST_RESULTS, settings_of
from rankwise.storage import MANIFEST

LARGEST_ADAPTER = 1 << 26
"""Bytes of adapter.json: it lists every block of every site."""
FILES = ("config.toml", "environment.json", "events.jsonl", "results.json", "matrix.csv")
"""What a page is made from, beside the adapter's record."""

Points = list[tuple[float, float | None]]


@dataclass(frozen=True)
class Record:
    """What the files of a run say."""

    folder: Path
    results: Mapping[str, Any]
    settings: Mapping[str, Any]
    """The complete config, one entry a key, as in {"train.lr": 0.001}."""
    environment: Mapping[str, Any]
    events: Sequence[Mapping[str, Any]]
    adapter: Mapping[str, Any]
    """adapter.json; empty where the method has no adapter."""
    files: Mapping[str, Mapping[str, Any]]
    """Size and SHA-256 of each file under adapter/."""

    @property
    def tasks(self) -> list[str]:
        """Names of the stream's tasks, in order."""
        return list(self.results["tasks"])

    @property
    def rows(self) -> list[str]:
        """What each row of R comes after; where all tasks were learnt at once, rows before the last are empty."""
        return self.tasks[: len(self.results["matrix"])]

    def blocks(self) -> list[str]:
        """Labels of the adapter's blocks, in the order of their first appearance."""
        return list(dict.fromkeys(b["label"] for site in self.adapter.get("sites", ()) for b in site["blocks"]))

    def digests(self) -> dict[str, str]:
        """Return the SHA-256 of each file that a page is made from."""
        found = (self.folder / name for name in FILES)
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in found if path.is_file()}


def read(folder: Path) -> Record:
    """Read the run in `folder`. Raises DataError if it is not finished, StorageError if a file cannot be read."""
    if not (folder / "results.json").is_file():
        raise DataError(f"{folder}: is not finished, so there is nothing to report; `rankwise resume {folder}`")
    adapter = folder / "adapter" / "adapter.json"
    manifest = folder / "adapter" / MANIFEST
    return Record(
        folder,
        load_json(folder / "results.json", LARGEST_RESULTS),
        settings_of(folder),
        load_json(folder / "environment.json", LARGEST_RECORD),
        Ledger(folder).read_events(),
        load_json(adapter, LARGEST_ADAPTER) if adapter.is_file() else {},
        load_json(manifest)["files"] if manifest.is_file() else {},
    )


def over_time(results: Mapping[str, Any], task: int) -> Points:
    """Return the scores on one task: (number of tasks learnt, score)."""
    first = [(0.0, results["zero_shot"][task])] if any(v is not None for v in results["zero_shot"]) else []
    return [*first, *((float(t + 1), row[task]) for t, row in enumerate(results["matrix"]))]


def average_so_far(results: Mapping[str, Any]) -> Points:
    """Return the mean score on the tasks learnt so far: (number of tasks learnt, mean)."""
    return [(float(t + 1), mean(row[: t + 1])) for t, row in enumerate(results["matrix"])]


def losses(record: Record) -> dict[str, Points]:
    """Return each loss at the steps at which it was logged: {name: (steps from the start of the run, loss)}."""
    found: dict[str, Points] = {}
    for step, event in logged(record):
        for name, value in event["losses"].items():
            found.setdefault(name, []).append((float(step), value))
    return found


def whole_loss(record: Record) -> Points:
    """Return the sum of the losses at the steps at which they were logged."""
    return [(float(step), sum(event["losses"].values())) for step, event in logged(record)]


def logged(record: Record) -> list[tuple[int, Mapping[str, Any]]]:
    """Return the step events, each with its step from the start of the run."""
    found, before, last = [], 0, 0
    for event in record.events:
        if event["event"] == "step":
            last = before + event["step"]
            found.append((last, event))
        elif event["event"] == "task":
            before = last
    return found


def task_ends(record: Record) -> list[tuple[str, int]]:
    """Return the tasks learnt, each with the steps made by its end."""
    found, before, last = [], 0, 0
    for event in record.events:
        if event["event"] == "step":
            last = before + event["step"]
        elif event["event"] == "task":
            before = last
            found.append((event["task"], last))
    return found


def broken(points: Points, ends: Sequence[tuple[str, int]]) -> Points:
    """Return `points` with a gap after each task: no line leads from one task's loss to another's."""
    gaps: Points = [(float(end), None) for _, end in ends]
    return sorted([*points, *gaps], key=lambda point: (point[0], point[1] is None))


def mean(values: Iterable[float | None]) -> float | None:
    """Return the mean, None if a value is not known or there is none."""
    cells = list(values)
    known = [value for value in cells if value is not None]
    return sum(known) / len(known) if known and len(known) == len(cells) else None


def mean_points(lines: Sequence[Points]) -> Points:
    """Return the mean of lines at the places that all of them have."""
    tables = [dict(line) for line in lines]
    shared = [x for x, _ in lines[0] if all(x in table for table in tables)]
    return [(x, mean(table[x] for table in tables)) for x in shared]
