"""Folders of runs made by hand: what a run leaves, without learning anything."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rankwise.learning.metrics import summary

SHA = "0123456789abcdef" * 4
BASE = {"name": "embedded:vit", "fingerprint": SHA}


def events(tasks: Sequence[str], matrix: Sequence[Sequence[Any]], steps: int, terms: Sequence[str]) -> str:
    """Return the lines of events.jsonl: two step events a task, then its end."""
    stamp = {"time": "2026-01-02T03:04:05.678+00:00"}
    lines: list[dict[str, Any]] = [{"event": "start", "scores": [None] * len(tasks), **stamp}]
    for t, row in enumerate(matrix):
        for step in (steps // 2, steps):
            losses = {term: (t + 1) / step + i for i, term in enumerate(terms)}
            lines.append({"event": "step", "task": tasks[t], "step": step, "losses": losses, "rate": 0.5, **stamp})
        lines.append({"event": "task", "task": tasks[t], "scores": row, "validation": row, **stamp})
    return "".join(json.dumps(line) + "\n" for line in lines)


def made(
    folder: Path,
    tasks: Sequence[str] = ("first", "second", "third"),
    matrix: Sequence[Sequence[float | None]] = ((0.9, None, None), (0.8, 0.7, None), (0.4, 0.65, 0.95)),
    *,
    method: str = "mora",
    seed: int = 0,
    sites: int = 2,
    blocks: bool = True,
    terms: Sequence[str] = ("classify",),
    toml: str = "",
    **results: Any,
) -> Path:
    """Write a finished run of `tasks` with scores `matrix`, whose gate reported shares if it has `blocks`."""
    folder.mkdir(parents=True)
    names = [f"layers.{i}.attention.q_proj" for i in range(sites)]
    count = len(tasks)
    shares = [
        [round(0.9 * (1 + (i + j) % count) / (count * (count + 1) / 2), 4) for j in range(count)] for i in range(sites)
    ]
    cell = {"block_share": [*shares, [0.5] * count][0], "active_atoms": [2.5], "pass_rate": [1.0]}
    diagnostics = [[{} for _ in row] for row in matrix]
    diagnostics[-1:] = [[cell if score is not None and blocks else {} for score in row] for row in matrix[-1:]]
    by_site = {site: {**cell, "block_share": shares[i]} for i, site in enumerate(names)} if blocks else {}
    found = {
        **{"method": method, "model": BASE["name"], "stream": "birds", "seed": seed, "metric": "accuracy"},
        **{
            "tasks": list(tasks),
            "matrix": matrix,
            "zero_shot": [None] * count,
            **summary(matrix, [None] * count, [10] * count),
        },
        **{"validation_matrix": matrix, "validation_final_average": 0.5},
        **{"diagnostics": diagnostics, "diagnostics_by_site": by_site, "diagnostics_change": {}},
        **{"steps": 20 * count, "trainable_parameters": 1234, "stored_bytes": 5678, "wall_seconds": 61.0},
        **{"peak_memory_bytes": 2**29, "test_examples": [10] * count, **results},
    }
    sized = {"sizes": {"train": 30, "validation": None, "test": 10}, "ids_sha256": {"train": SHA, "test": SHA}}
    stream = {
        **{"kind": "class-incremental", "seed": seed, "order": "given"},
        "tasks": [{"name": task, "classes": [i], **sized} for i, task in enumerate(tasks)],
        "sources": [{"name": "birds.parquet", "sha256": SHA, "rows": 300}],
    }
    machine = {"python": "3.11.7", "platform": "Linux", "processor_threads": 1, "gpu": None}
    environment = {**machine, "packages": {"torch": "2.13.0"}, "base": BASE, "stream": stream}
    labels = [{"label": task, "size": 8, "live": False} for task in tasks[: len(matrix)]] if blocks else []
    adapter = {"sites": [{"name": site, "blocks": labels} for site in names]}
    write(folder / "config.toml", f'seed = {seed}\nmethod = "{method}"\n{toml}')
    write(folder / "environment.json", json.dumps(environment))
    write(folder / "events.jsonl", events(tasks, matrix, 20, terms))
    write(folder / "results.json", json.dumps(found))
    if sites:
        write(folder / "adapter" / "adapter.json", json.dumps(adapter))
        digest = hashlib.sha256((folder / "adapter" / "adapter.json").read_bytes()).hexdigest()
        write(
            folder / "adapter" / "manifest.json", json.dumps({"files": {"adapter.json": {"size": 1, "sha256": digest}}})
        )
    return folder


def write(path: Path, text: str) -> None:
    """Write a file and the folder it is in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
