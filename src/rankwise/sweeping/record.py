"""`sweep.json`: what was asked, every cell that is done, and what was picked; written whole after each cell."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rankwise.errors import StorageError
from rankwise.files import load_json, write_file
from rankwise.sweeping.grid import combinations
from rankwise.sweeping.plan import TUNING, Cell, Plan

NAME = "sweep.json"
LARGEST = 1 << 28
MOST = 5
"""Differences named in one error."""
GROWS = ("methods", "seeds")
"""Parts of a plan to which a later call may add: they change no choice that was made."""
SCORE = "validation_final_average"


class Record:
    """The record of the sweep in `folder`, read where there is one."""

    def __init__(self, folder: Path, plan: Plan) -> None:
        """Read what is done; raise StorageError if `folder` holds the record of another sweep."""
        self.path, self.plan = folder / NAME, plan
        self.cells: list[dict[str, Any]] = []
        begun = [*folder.glob("*/config.toml"), *folder.glob(f"{TUNING}/*/config.toml")]
        saved: dict[str, Any] = load_json(self.path, LARGEST) if self.path.exists() else {"cells": [], "plan": {}}
        if saved["cells"] or begun:  # a sweep of which nothing was learnt (a file was missing) may be asked anew
            _refuse_other(saved["plan"], json.loads(json.dumps(plan.record())), self.path)
            self.cells = saved["cells"]

    def find(self, cell: Cell) -> dict[str, Any] | None:
        """Return what is recorded of a cell, if it is done."""
        return next((done for done in self.cells if done["folder"] == cell.folder), None)

    def add(self, cell: Cell, results: Mapping[str, Any]) -> dict[str, Any]:
        """Note that a cell is done. Of a tuning run the validation average is kept, and nothing of its test scores."""
        entry = {"stage": cell.stage, "method": cell.method, "values": dict(cell.values), "seed": cell.seed}
        kept = ("error", SCORE, "wall_seconds") if cell.stage == "tune" else tuple(results)
        scores = {key: results[key] for key in kept if key in results and _is_scalar(results[key])}
        self.cells.append({**entry, "folder": cell.folder, **scores})
        self.write()
        return self.cells[-1]

    def write(self) -> None:
        """Write the record, whole or not at all; the order of cells is the plan's, not that of the clock."""
        chosen = {method: self.choice(method) for method in self.plan.methods}
        self.cells.sort(key=lambda done: (done["stage"] != "tune", self._place(done["method"]), done["folder"]))
        value = {"plan": self.plan.record(), "chosen": chosen, "cells": self.cells}
        write_file(self.path, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())

    def choice(self, method: str) -> dict[str, Any] | None:
        """Return the values with the best mean validation average, or None before all tuning runs are done.

        Keys: values (None where every tuning run failed); validation (that mean; None where nothing was to choose);
        at_edge (keys whose value is the smallest or largest of its list: the best may lie beyond). Of equals the first
        of the grid is taken; a combination of which a run failed is not.
        """
        choices = combinations(self.plan.grid)
        if len(choices) == 1:
            return {"values": choices[0], "validation": None, "at_edge": []}
        cells = self.plan.tuning(method)
        done = [self.find(cell) for cell in cells]
        if any(entry is None for entry in done):
            return None
        found = [(cell.values, entry or {}) for cell, entry in zip(cells, done, strict=True)]
        means = [_mean([entry for values, entry in found if values == choice]) for choice in choices]
        best = max(range(len(choices)), key=lambda i: means[i])
        if means[best] == -math.inf:
            return {"values": None, "validation": None, "at_edge": []}
        return {"values": choices[best], "validation": means[best], "at_edge": _edges(choices[best], self.plan.grid)}

    def _place(self, method: str) -> int:
        return self.plan.methods.index(method) if method in self.plan.methods else len(self.plan.methods)


def failures(record: Mapping[str, Any]) -> list[str]:
    """Say which runs of a sweep that is done failed, and which methods were left without settings; a line each."""
    runs = [cell for cell in record["cells"] if cell["stage"] == "final" and "error" in cell]
    nothing = [method for method, choice in record["chosen"].items() if choice["values"] is None]
    return [
        *(f"{cell['folder']}: {cell['error']}" for cell in runs),
        *(f"{method}: every tuning run failed, see {NAME}; try smaller values" for method in nothing),
    ]


def _is_scalar(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float)


def _mean(entries: Sequence[Mapping[str, Any]]) -> float:
    """Return the mean validation average of one combination's seeds; minus infinity where a run failed."""
    scores = [entry.get(SCORE) for entry in entries]
    known = [score for score in scores if score is not None]
    return math.fsum(known) / len(known) if len(known) == len(scores) else -math.inf


def _edges(values: Mapping[str, Any], grid: Mapping[str, Sequence[Any]]) -> list[str]:
    """Return the keys whose picked number is at an end of a list of at least three numbers."""
    edges = []
    for key, choices in grid.items():
        numeric = all(isinstance(each, int | float) and not isinstance(each, bool) for each in choices)
        if numeric and len(choices) > 2 and values[key] in (min(choices), max(choices)):
            edges.append(key)
    return edges


def _refuse_other(saved: Mapping[str, Any], asked: Mapping[str, Any], path: Path) -> None:
    for key, value in asked.items():
        known = saved.get(key)
        if key in GROWS and isinstance(known, list) and set(known) <= set(value):
            continue
        if known != value:
            found = [*_changes(key, known, value)]
            more = [f"and {len(found) - MOST} more"] if len(found) > MOST else []
            raise StorageError(
                f"{path}: belongs to a sweep with another {key} ({'; '.join(found[:MOST] + more)}); "
                "choose another --out, or ask for the same to continue it"
            )


def _changes(place: str, known: Any, asked: Any) -> Iterator[str]:
    """Yield what differs, each with its dotted key."""
    if isinstance(known, Mapping) and isinstance(asked, Mapping):
        for key in {**known, **asked}:
            yield from _changes(f"{place}.{key}", known.get(key), asked.get(key))
    elif known != asked:
        yield f"{place} was {_brief(known)}, now {_brief(asked)}"


def _brief(value: Any) -> str:
    text = "not set" if value is None else json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
