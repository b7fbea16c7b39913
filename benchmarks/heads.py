"""Why the default objective is what it is: losses and heads on the demo's stream, with LoRA and with MoRA.

    python benchmarks/heads.py [--seeds 3] [--steps 60] [--jobs 2]

Writes benchmarks/results/heads.json.
"""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

from _cells import arguments, measured, spread

OUT = Path(__file__).parent / "results" / "heads.json"
RATE = 3e-3
KEYS = ("final_average", "forgetting_first_minus_last", "learning_accuracy")
OBJECTIVES: dict[str, dict[str, Any]] = {
    "linear, seen classes; head": {"head": "linear", "classes": "seen", "predict": "head"},
    "linear, seen classes; means": {"head": "linear", "classes": "seen", "predict": "means"},
    "linear, task classes; head": {"head": "linear", "classes": "task", "predict": "head"},
    "linear, task classes; means": {"head": "linear", "classes": "task", "predict": "means"},
    "names, task classes; head": {"head": "names", "classes": "task", "predict": "head"},
    "cosine imprinted, task classes; head": {"predict": "head"},
    "cosine imprinted, task classes; means (default)": {},
    "cosine random, task classes; means": {"imprint": False},
    "means frozen, task classes; means": {"head": "means"},
}


def one(job: tuple[str, str, int, int]) -> dict[str, Any]:
    """Run one cell and return its summary."""
    name, method, seed, steps = job
    train = {"steps": steps, "lr": RATE, "threads": 1}
    config = {"method": method, "seed": seed, "objective": OBJECTIVES[name], "train": train}
    return {"objective": name, "method": method, "seed": seed, **measured(config, KEYS)}


def main() -> None:
    """Run all cells, print the table and write the result."""
    asked = arguments(__doc__)
    jobs = [(n, m, s, asked.steps) for n in OBJECTIVES for m in ("lora", "mora") for s in range(asked.seeds)]
    cells = spread(one, jobs, asked.jobs)
    for name in OBJECTIVES:
        print(f"{name:50}", *(f"{method} {mean(cells, name, method)}" for method in ("lora", "mora")), sep="  ")
    record = {"steps": asked.steps, "lr": RATE, "seeds": asked.seeds, "machine": platform.platform(), "cells": cells}
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps(record, indent=1) + "\n")
    print(OUT)


def mean(cells: list[dict[str, Any]], name: str, method: str) -> str:
    """Write final / forgetting / learning, averaged over seeds."""
    own = [cell for cell in cells if (cell["objective"], cell["method"]) == (name, method)]
    return " / ".join(f"{sum(cell[key] for cell in own) / len(own):.2f}" for key in KEYS)


if __name__ == "__main__":
    main()
