"""Short runs over real digits: their config, and what they leave in their directory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

SMALL = {
    "model": {"name": "embedded:vit"},
    "stream": {"name": "digits", "classes_per_task": 4, "train_limit": 24, "test_limit": 20},
    "train": {"steps": 5, "batch_size": 8, "device": "cpu", "log_every": 1},
}
"""Three tasks of 4, 4 and 2 digits, five steps each: enough to see what moves, too little to learn much."""


def snapshots(run: Path) -> list[dict[str, Tensor]]:
    """Return the tensors of the snapshot at the end of each task, in order."""
    folders = sorted((run / "checkpoints").glob("step-*"))
    return [load_file(str(folder / "state.safetensors")) for folder in folders]


def stored(run: Path, name: str) -> dict[str, Tensor]:
    """Return the tensors of one file under adapter/."""
    return load_file(str(run / "adapter" / name))


def read_json(run: Path, name: str) -> dict[str, Any]:
    """Return one JSON file of the run."""
    return json.loads((run / name).read_text(encoding="utf-8"))


def events(run: Path, kind: str) -> list[dict[str, Any]]:
    """Return the events of one kind, in order."""
    lines = (run / "events.jsonl").read_text(encoding="utf-8").splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == kind]


def lower_half(matrix: list[list[float | None]]) -> bool:
    """Say whether R is known exactly on and below its diagonal."""
    return all((cell is None) == (j > t) for t, row in enumerate(matrix) for j, cell in enumerate(row))
