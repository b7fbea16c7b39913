"""`rankwise sweep`: each method at its own settings, over seeds."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter as Option

from rankwise.cli.common import Json, check_config, check_method, check_out, loading, print_json, words
from rankwise.errors import RankwiseError, UsageError, nearest

if TYPE_CHECKING:
    from rankwise.sweeping import Plan


def sweep(
    config: Path,
    /,
    *,
    grid: Annotated[tuple[str, ...], Option(negative=(), show_default=False)] = (),
    seeds: int = 3,
    methods: Annotated[str | None, Option(show_default=False)] = None,
    set_: Annotated[tuple[str, ...], Option(name="--set", negative=(), show_default=False)] = (),
    tune_tasks: int = 2,
    tune_seeds: int = 1,
    jobs: int = 1,
    on: str = "local",
    out: Path | None = None,
    json: Json = False,
) -> None:
    """Pick each method's own settings on validation data, then learn the whole stream with every seed.

    Stopped or killed, the same command goes on where it was. Test scores pick nothing and are reported once.

    Example: rankwise sweep my.toml --grid "train.lr=log(1e-4,1e-2,5)" --methods lora,mora --seeds 3 --jobs 2

    Args:
        config: A TOML file, as for `rankwise run`.
        grid: key=[a, b], or key=log(low, high, n) (n values, evenly spaced on a log scale), or
            key=loguniform(low, high, n) (drawn); may be given again and again: every combination is tried.
        seeds: How many, counted from the config's seed.
        methods: Methods to compare, separated by commas. Default: the config's.
        set_: key=value laid over the config for every run.
        tune_tasks: Settings are picked on the first so many tasks of the stream; 0: on all.
        tune_seeds: Seeds over which the validation scores that pick are averaged.
        jobs: Runs at a time, each in a process of its own with one thread.
        on: Where the runs are learnt: local.
        out: Folder to write to. Default: runs/sweep-<config's name>.

    """
    chosen = {"methods": words(methods), "seeds": seeds, "tune_tasks": tune_tasks, "tune_seeds": tune_seeds}
    with loading():
        check_config(config, set_)
        check_out(out)
        for method in words(methods):
            check_method(method, "--methods ")
        if on != "local":
            said = "a part of --methods on each machine does it for several" if on == "ray" else nearest(on, ["local"])
            raise UsageError(f"--on {on}: runs are learnt on this machine alone so far; {said}")
        if jobs < 1:
            raise UsageError(f"--jobs {jobs}: give at least 1")
        plan = _plan(config, grid, set_, **chosen)
    folder = out or Path("runs") / f"sweep-{config.stem}"
    _show(_work(plan, folder, jobs), folder, json)


def _plan(config: Path, grid: tuple[str, ...], set_: tuple[str, ...], **choices: Any) -> Plan:
    """Lay the grid out, and check every config that a run of it will have."""
    from rankwise.config import load_config
    from rankwise.sweeping import make_plan, parse_grid

    plan = make_plan(config, parse_grid(grid, load_config(config, set_).seed), overrides=set_, **choices)
    for cell in plan.cells():
        check_config(config, plan.overrides_of(cell))
    return plan


def _work(plan: Plan, folder: Path, jobs: int) -> Mapping[str, Any]:
    """Do what is left of a plan, and show how far it is; stopped, say how to go on."""
    with loading():
        from rankwise.reporting.terminal import progress
        from rankwise.sweeping.work import sweep as work

    try:
        with progress() as watch:
            return work(plan, folder, jobs=jobs, watch=watch)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"stopped; the same command goes on in {shlex.quote(str(folder))}") from None


def _show(record: Mapping[str, Any], folder: Path, json: bool) -> None:
    """Print what was picked and how the picked runs compare; fail if a run did."""
    from rankwise.reporting.compare import compare, compare_tables
    from rankwise.reporting.tables import chosen_table, show
    from rankwise.sweeping.record import failures

    finals = [folder / cell["folder"] for cell in record["cells"] if cell["stage"] == "final" and "error" not in cell]
    comparison = compare(finals) if finals else {"tables": [], "notes": []}
    if json:
        print_json({**record, "comparison": comparison})
    else:
        for table in (chosen_table(record), *compare_tables(comparison)):
            show(table)
            print()
        print(f"sweep directory: {folder}")
    if failed := failures(record):
        raise RankwiseError("\n".join(failed))
