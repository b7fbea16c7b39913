"""The demo's stream over seeds: MoRA against sequential LoRA, at one rate and at each one's rate picked on validation.

    python benchmarks/margin.py [--seeds 3] [--steps 60] [--jobs 2]

Every cell is one run of `rankwise.run` in a process of its own with one thread. Rates are picked for each seed on the
validation average after the last task; the test average of the picked run is then read once. Writes
benchmarks/results/margin.json.
"""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

from _cells import arguments, measured, spread

RATES = (1e-4, 3e-4, 1e-3, 3e-3)
VALIDATION = 60  # images a task: 300 in all
METHODS = ("lora", "lora-append", "mora", "replay")
OUT = Path(__file__).parent / "results" / "margin.json"

Job = tuple[str, float, int, int]


def one(job: Job) -> dict[str, Any]:
    """Run one cell and return its summary."""
    method, rate, seed, steps = job
    config: dict[str, Any] = {
        "method": "linear-probe" if method == "frozen" else method,
        "seed": seed,
        "stream": {"validation": VALIDATION},
        "train": {"steps": 0 if method == "frozen" else steps, "lr": rate, "threads": 1},
    }
    if method == "frozen":
        config["objective"] = {"predict": "means"}
    keys = (
        "final_average",
        "forgetting_first_minus_last",
        "learning_accuracy",
        "validation_final_average",
        "wall_seconds",
    )
    return {"method": method, "lr": rate, "seed": seed, **measured(config, keys)}


def jobs(seeds: int, steps: int) -> list[Job]:
    """Return every cell."""
    bounds = [(method, 3e-3, seed, steps) for seed in range(seeds) for method in ("frozen", "joint")]
    return bounds + [(m, rate, seed, steps) for seed in range(seeds) for rate in RATES for m in METHODS]


def table(cells: list[dict[str, Any]], seeds: int) -> list[dict[str, Any]]:
    """Return a row for each method and rate, and one for each method at its picked rates, with 95 % intervals."""
    rows = []
    for method in ("frozen", "joint", *METHODS):
        own = [cell for cell in cells if cell["method"] == method]
        for rate in sorted({cell["lr"] for cell in own}):
            rows.append(summary(method, f"{rate:g}", [cell for cell in own if cell["lr"] == rate]))
        if method in METHODS:
            rows.append(summary(method, "picked", [picked(own, seed) for seed in range(seeds)]))
    return rows


def picked(cells: list[dict[str, Any]], seed: int) -> dict[str, Any]:
    """Return the cell of `seed` that validation prefers."""
    return max((cell for cell in cells if cell["seed"] == seed), key=lambda cell: cell["validation_final_average"])


def summary(method: str, rate: str, cells: list[dict[str, Any]]) -> dict[str, Any]:
    """Average cells over seeds."""
    from rankwise.learning.metrics import mean_interval

    row: dict[str, Any] = {"method": method, "lr": rate, "rates": [cell["lr"] for cell in cells]}
    for key in ("final_average", "forgetting_first_minus_last", "learning_accuracy", "validation_final_average"):
        row[key] = [cell[key] for cell in cells]
        row[f"{key}_interval"] = mean_interval(row[key])
    return row


def pairs(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return MoRA minus LoRA, seed by seed, at each rate and at the picked ones."""
    from rankwise.learning.metrics import mean_interval

    found = {(row["method"], row["lr"]): row for row in rows}
    result = []
    for rate in (*(f"{rate:g}" for rate in RATES), "picked"):
        ours, theirs = found["mora", rate], found["lora", rate]
        gain = [a - b for a, b in zip(ours["final_average"], theirs["final_average"], strict=True)]
        result.append({"lr": rate, "final_average_gain": gain, "interval": mean_interval(gain)})
    return result


def show(rows: list[dict[str, Any]], differences: list[dict[str, Any]]) -> None:
    """Print both tables."""
    print(f"{'method':13} {'lr':>7} {'final':>16} {'forgetting':>16} {'learning':>16} {'validation':>11}")
    for row in rows:
        keys = ("final_average", "forgetting_first_minus_last", "learning_accuracy")
        cells = [text(row[f"{key}_interval"]) for key in keys]
        print(
            f"{row['method']:13} {row['lr']:>7} {cells[0]:>16} {cells[1]:>16} {cells[2]:>16} "
            f"{row['validation_final_average_interval'][0]:11.3f}"
        )
    for row in differences:
        gains = " ".join(f"{gain:+.3f}" for gain in row["final_average_gain"])
        print(f"mora - lora at {row['lr']:>6}: {text(row['interval'])}   ({gains})")


def text(interval: tuple[float, float, float, int] | None) -> str:
    """Write a mean and half its 95 % interval."""
    return "-" if interval is None else f"{interval[0]:.3f} +- {interval[2] - interval[0]:.3f}"


def main() -> None:
    """Run all cells and write the result."""
    asked = arguments(__doc__)
    cells = spread(one, jobs(asked.seeds, asked.steps), asked.jobs)
    rows = table(cells, asked.seeds)
    differences = pairs(rows)
    show(rows, differences)
    record = {
        "steps": asked.steps,
        "seeds": asked.seeds,
        "validation_images": 5 * VALIDATION,
        "machine": platform.platform(),
    }
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(
        json.dumps({**record, "rows": rows, "mora_minus_lora": differences, "cells": cells}, indent=1) + "\n"
    )
    print(OUT)


if __name__ == "__main__":
    main()
