"""What a sweep is to do, as data: its cells follow from config, methods, grid and seeds. Light: no torch."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rankwise.config import Config, load_config, read_config
from rankwise.errors import UsageError
from rankwise.sweeping.grid import combinations

TUNING = "tuning"
"""Folder of the runs that pick settings, below the sweep's; removed when all are recorded."""


@dataclass(frozen=True)
class Cell:
    """One run of a sweep."""

    stage: Literal["tune", "final"]
    """tune: on the first tasks, read on validation data only; final: the whole stream at the picked values."""
    method: str
    values: Mapping[str, Any]
    """Settings of the grid: key -> value."""
    seed: int
    folder: str
    """Of the run, below the sweep's."""

    def name(self) -> str:
        """Say which run this is."""
        return " ".join([self.stage, self.method, *(f"{k}={v}" for k, v in self.values.items()), f"seed {self.seed}"])


@dataclass(frozen=True)
class Plan:
    """A sweep."""

    config: Path
    overrides: tuple[str, ...]
    """key=value texts laid over the config for every cell."""
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    grid: Mapping[str, Sequence[Any]]
    tune_tasks: int
    """Tasks of the stream that the picking sees; 0: all."""
    tune_seeds: int
    """Seeds, the first of `seeds`, over which the picking averages."""

    def tuning(self, method: str) -> list[Cell]:
        """Return the runs that pick the settings of `method`; none where there is nothing to choose between."""
        choices = combinations(self.grid)
        if len(choices) < 2:
            return []
        return [
            Cell("tune", method, values, seed, f"{TUNING}/{method}-{i}-seed{seed}")
            for i, values in enumerate(choices)
            for seed in self.seeds[: self.tune_seeds]
        ]

    def final(self, method: str, values: Mapping[str, Any]) -> list[Cell]:
        """Return the runs of `method` at the picked values."""
        return [Cell("final", method, values, seed, f"{method}-seed{seed}") for seed in self.seeds]

    def cells(self) -> Iterator[Cell]:
        """Yield every run there is to check: all that tune, and the final ones as if the first values were picked."""
        for method in self.methods:
            yield from (*self.tuning(method), *self.final(method, combinations(self.grid)[0]))

    def overrides_of(self, cell: Cell) -> list[str]:
        """Return what makes the config of a cell, as key=value texts; one thread, unless the config says otherwise."""
        own = [
            f"method={_toml(cell.method)}",
            f"seed={cell.seed}",
            *(f"{k}={_toml(v)}" for k, v in cell.values.items()),
        ]
        first = [f"stream.first_tasks={self.tune_tasks}"] if cell.stage == "tune" and self.tune_tasks else []
        threads = ["train.threads=1"] if load_config(self.config, self.overrides).train.threads is None else []
        return [*threads, *self.overrides, *own, *first]

    def record(self) -> dict[str, Any]:
        """Return the plan as JSON values, the config's text read."""
        return {
            "config": read_config(self.config, self.overrides),
            "methods": list(self.methods),
            "seeds": list(self.seeds),
            "grid": {key: list(values) for key, values in self.grid.items()},
            "tune_tasks": self.tune_tasks,
            "tune_seeds": self.tune_seeds,
        }


def make_plan(
    config: Path,
    grid: Mapping[str, Sequence[Any]],
    *,
    overrides: Iterable[str] = (),
    methods: Sequence[str] = (),
    seeds: int = 3,
    tune_tasks: int = 2,
    tune_seeds: int = 1,
) -> Plan:
    """Check what a sweep is asked to do, every cell of it against the schema, before anything heavy loads.

    Args:
        config: a TOML file.
        grid: key -> values, as `parse_grid` returns it.
        overrides: key=value texts laid over the config.
        methods: to compare. Default: the config's.
        seeds: how many, counted from the config's seed.
        tune_tasks: see `Plan`.
        tune_seeds: see `Plan`; at most `seeds`.

    Raises:
        UsageError: what the schema refuses, or a choice without validation data to make it on.

    """
    overrides = tuple(overrides)
    base = load_config(config, overrides)
    _check_counts(seeds, tune_tasks, tune_seeds)
    _check_keys(grid)
    first = base.seed
    plan = Plan(
        config,
        overrides,
        tuple(methods) or (base.method,),
        tuple(range(first, first + seeds)),
        grid,
        tune_tasks,
        tune_seeds,
    )
    repeated = sorted({method for method in plan.methods if plan.methods.count(method) > 1})
    if repeated:
        raise UsageError(f"--methods: {repeated[0]!r} is given twice; leave one out")
    for cell in plan.cells():
        _check(plan, cell, load_config(config, plan.overrides_of(cell)))
    return plan


def _check_counts(seeds: int, tune_tasks: int, tune_seeds: int) -> None:
    if seeds < 1:
        raise UsageError(f"--seeds {seeds}: give at least 1")
    if tune_tasks < 0:
        raise UsageError(f"--tune-tasks {tune_tasks}: give a number of tasks, or 0 for the whole stream")
    if not 1 <= tune_seeds <= seeds:
        raise UsageError(f"--tune-seeds {tune_seeds}: give 1 to {seeds}, the number of seeds")


def _check_keys(grid: Mapping[str, Any]) -> None:
    for key, option in (("seed", "--seeds"), ("method", "--methods"), ("stream.first_tasks", "--tune-tasks")):
        if key in grid:
            raise UsageError(f"--grid {key}=...: use {option}; the grid holds settings that are picked")


def _check(plan: Plan, cell: Cell, config: Config) -> None:
    if cell.stage == "tune" and not config.stream.validation:
        raise UsageError(
            f"{plan.config}: stream.validation = 0, so nothing can be picked (test rows never pick); "
            "set stream.validation, or give each key of --grid one value"
        )


def _toml(value: Any) -> str:
    """Write a value of the grid as TOML in one line: JSON is TOML for numbers, booleans and strings."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key} = {_toml(held)}" for key, held in value.items()) + "}"
    return f"[{', '.join(map(_toml, value))}]" if isinstance(value, list) else json.dumps(value)
