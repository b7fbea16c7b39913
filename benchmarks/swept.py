"""A sweep's folder in short, for the tables of the documentation.

    python benchmarks/swept.py runs/sweep-digits benchmarks/results/digits.json --machine "2 cores, no GPU"

For each method: the validation score of every value tried, and of each run of the whole stream at the picked value its
scores, seconds and trained numbers.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

SCORES = {"final": "final_average", "forgetting": "forgetting_first_minus_last", "learning": "learning_accuracy"}


def main() -> None:
    """Read the folder, write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--machine", required=True)
    given = parser.parse_args()
    record = json.loads((given.folder / "sweep.json").read_text(encoding="utf-8"))
    plan = record["plan"]
    found = {
        "config": plan["config"],
        "machine": given.machine,
        "tuned_on": f"first {plan['tune_tasks']} tasks, {plan['tune_seeds']} seed",
        "methods": [method_of(method, record, given.folder) for method in plan["methods"]],
    }
    given.out.write_text(json.dumps(found) + "\n", encoding="utf-8")


def method_of(method: str, record: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return what was measured of one method."""
    cells = [cell for cell in record["cells"] if cell["method"] == method]
    tuned = [cell for cell in cells if cell["stage"] == "tune"]
    return {
        "method": method,
        "tuning_validation": {str(cell["values"]["train.lr"]): cell["validation_final_average"] for cell in tuned},
        "runs": [run_of(cell, folder) for cell in cells if cell["stage"] != "tune"],
    }


def run_of(cell: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return the scores of one run of the whole stream."""
    results = json.loads((folder / cell["folder"] / "results.json").read_text(encoding="utf-8"))
    return {
        "seed": cell["seed"],
        "lr": cell["values"]["train.lr"],
        **{name: results[key] for name, key in SCORES.items()},
        "last_row": results["matrix"][-1],
        "seconds": round(results["wall_seconds"], 3),
        "parameters": results["trainable_parameters"],
    }


if __name__ == "__main__":
    main()
