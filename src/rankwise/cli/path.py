"""`rankwise path`: the straight line between what a run was after two of its tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter as Option

from rankwise.cli.common import Json, check_run, check_tasks, loading, print_json, words
from rankwise.errors import UsageError


def path(
    folder: Path,
    /,
    *,
    tasks: Annotated[str, Option(show_default=False)] = "",
    alphas: int = 11,
    plot: Path | None = None,
    json: Json = False,
) -> None:
    """Score a run along the straight line between its values after two tasks, and plot it.

    Example: rankwise path runs/digits-i-lora-seed0 --tasks digits-1,digits-2 --alphas 11

    Args:
        folder: The folder of a run with one set of weights through the stream.
        tasks: Two of its tasks, separated by a comma. Default: the last two it learnt.
        alphas: Points on the line, both ends included.
        plot: File for the plot, .svg or .png. Default: path-<task>-<task>.svg in the folder.

    """
    from rankwise.reporting.formats import check_plot

    check_run(folder)
    names = words(tasks)
    if names and len(names) != 2:
        raise UsageError(f"--tasks {tasks!r}: name two tasks, as in --tasks first,second")
    check_tasks(folder, names, "--tasks")
    if alphas < 2:
        raise UsageError(f"--alphas {alphas}: the line has two ends; give at least 2")
    if plot is not None:
        check_plot(plot)
    with loading():
        from rankwise import saved
        from rankwise.reporting.paths import draw, path_table
        from rankwise.reporting.tables import show

    measured = saved.path(folder, tasks=(names[0], names[1]) if names else None, alphas=alphas)
    drawn = draw(measured, folder, plot)
    if json:
        print_json({**measured, "plot": str(drawn)})
        return
    show(path_table(measured))
    print(f"plot: {drawn}")
