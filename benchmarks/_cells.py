"""What the benchmarks over seeds share: their command line, and one process with one thread for each cell."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

J = TypeVar("J")


def arguments(text: str | None) -> argparse.Namespace:
    """Read seeds, steps a task and processes at a time from the command line."""
    parser = argparse.ArgumentParser(description=text)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--jobs", type=int, default=2)
    return parser.parse_args()


def spread(one: Callable[[J], dict[str, Any]], cells: Sequence[J], jobs: int) -> list[dict[str, Any]]:
    """Run every cell, `jobs` at a time, each in a process of a fresh interpreter."""
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        return list(pool.map(one, cells))


def measured(config: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    """Run a config and return the named results."""
    import rankwise

    with tempfile.TemporaryDirectory() as folder:
        results = rankwise.run(config, out=Path(folder) / "run").results
    return {key: results[key] for key in keys}
