"""The demonstration: a real stream learnt with sequential LoRA and with MoRA, between its two bounds."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from rankwise import api
from rankwise.config import merged
from rankwise.errors import UsageError
from rankwise.learning.run import Watch
from rankwise.reporting.page import left_behind
from rankwise.reporting.tables import matrix_table, number, show, summary_table
from rankwise.reporting.terminal import duration


@dataclass(frozen=True)
class Size:
    """How much is learnt."""

    steps: int
    """Optimiser steps a task."""
    lr: float
    """Peak learning rate of every adapter."""
    validation: int
    """Rows a task set aside from training."""
    limit: int | None = None
    """At most so many training rows, and as many test rows, a task."""


FULL = Size(steps=60, lr=3e-3, validation=60)
FAST = Size(steps=5, lr=3e-3, validation=20, limit=40)

RUNS: Mapping[str, Mapping[str, Any]] = {
    "frozen": {"method": "linear-probe", "train": {"steps": 0}, "objective": {"predict": "means"}},
    "lora": {"method": "lora"},
    "mora": {"method": "mora"},
    "joint": {"method": "joint"},
}
"""Label -> what the run has of its own, in the order in which they are learnt."""
COMPARED = ("lora", "mora")
"""The runs whose matrices are printed."""


def config_of(label: str, seed: int, size: Size) -> dict[str, Any]:
    """Return the config of one of RUNS."""
    limits = {} if size.limit is None else {"train_limit": size.limit, "test_limit": size.limit}
    common = {
        "seed": seed,
        "model": {"name": "embedded:vit"},
        "stream": {"name": "digits", "classes_per_task": 2, "validation": size.validation, **limits},
        "train": {"steps": size.steps, "lr": size.lr},
    }
    return merged(common, RUNS[label])


def free_folder(seed: int) -> Path:
    """Return a folder under runs/ for the demonstration that is not taken yet."""
    stem = f"demo-seed{seed}"
    names = [stem, *(f"{stem}-{i}" for i in range(2, 10_000))]
    return next(path for name in names if not (path := Path("runs") / name).exists())


def demo(folder: Path, seed: int = 0, size: Size = FULL, watch: Watch | None = None) -> dict[str, Any]:
    """Learn every one of RUNS under `folder`; one that was stopped, or killed, goes on where it was.

    Returns:
        JSON values: settings, wall_seconds, runs (label -> path and results), reading (what the figures say), report
        (the page that compares them; each run has its own beside its results).

    Raises:
        UsageError: a run of another demonstration lies there.

    """
    watch, start, runs = watch or Watch(), time.monotonic(), {}
    for i, label in enumerate(RUNS):
        watch.note(f"run {i + 1}/{len(RUNS)}: {label}")
        done = _learnt(config_of(label, seed, size), folder / label, watch)
        runs[label] = {"path": str(done.path), "results": done.results}
    results = {label: run["results"] for label, run in runs.items()}
    seconds = round(time.monotonic() - start, 1)
    settings = {"seed": seed, **asdict(size)}
    said = reading(results, seed, size)
    page = left_behind(folder, watch, [folder / label for label in RUNS], said)
    return {
        **{"settings": settings, "wall_seconds": seconds, "runs": runs, "reading": said},
        "report": None if page is None else str(page),
    }


def _learnt(config: dict[str, Any], folder: Path, watch: Watch) -> api.Run:
    """Learn one run, or what is left of it."""
    if not (folder / "config.toml").is_file():
        return api.run(config, out=folder, watch=watch)
    if api.resolve(config)[0] != api.resolve(folder / "config.toml")[0]:
        raise UsageError(f"{folder}: holds a run with other settings; choose another --out")
    return api.resume(folder, watch=watch)


def reading(results: Mapping[str, Mapping[str, Any]], seed: int, size: Size) -> list[str]:
    """Say what the figures show and what they do not; every number and every comparison is taken from them."""
    lora, mora, frozen, joint = (results[label] for label in ("lora", "mora", "frozen", "joint"))
    final, lost, learnt = "final_average", "forgetting_first_minus_last", "learning_accuracy"
    slower = min(COMPARED, key=lambda label: results[label][learnt])
    return [
        f"Learnt task by task, mora ends at {number(mora[final])}, lora at {number(lora[final])};"
        f" since just learnt, a task has lost {number(mora[lost])} with mora, {number(lora[lost])} with lora.",
        f"One seed ({seed}), one small base, {size.steps} steps a task: a picture, not a test of significance.",
        f"Both learn at the rate {size.lr:g}, which flatters the slower of them. Just learnt, tasks score"
        f" {number(mora[learnt])} with mora and {number(lora[learnt])} with lora: the slower is {slower}."
        " How much of the difference a smaller rate for lora makes up is not shown here.",
        f"The base as it is, never trained, ends at {number(frozen[final])}: {_against(mora[final], frozen[final])}"
        f" All tasks at once (joint) end at {number(joint[final])}: the room that is left.",
        "To compare in earnest, give each method its own rate, picked by validation_final_average and never by test"
        " scores, and several seeds. Every run can be run again:"
        " rankwise run RUN/config.toml --set train.lr=0.0003 --set seed=1",
    ]


def _against(mora: float, frozen: float) -> str:
    """Compare as printed, so that the reader who subtracts finds the same."""
    gain = round(mora, 2) - round(frozen, 2)
    if abs(gain) < 0.005:
        return "mora ends where it began."
    return f"mora gained {number(gain)} on it." if gain > 0 else f"not training at all beats mora by {number(-gain)}."


def show_demo(outcome: Mapping[str, Any], console: Console | None = None) -> None:
    """Print the two matrices, the summary of all runs, where they lie, how long it took and how to read it."""
    console = console or Console()
    results = {label: run["results"] for label, run in outcome["runs"].items()}
    width = console.width if console.is_terminal else None
    for label in COMPARED:
        show(matrix_table(results[label], title=label, width=width), console)
        console.print()
    show(summary_table(results), console)
    lines = ["", *(f"{label}: {run['path']}" for label, run in outcome["runs"].items())]
    lines += [f"report: {outcome['report']}"] if outcome["report"] else []
    lines += [f"wall time: {duration(outcome['wall_seconds'])}", "", "How to read this"]
    lines += [f"- {line}" for line in outcome["reading"]]
    console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=not console.is_terminal)
