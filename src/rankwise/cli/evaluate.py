"""`rankwise evaluate`: score a saved run."""

from __future__ import annotations

from pathlib import Path

from rankwise.cli.common import Json, check_run, check_tasks, loading, print_json


def evaluate(folder: Path, /, *, task: str | None = None, json: Json = False) -> None:
    """Score a saved run, as it stood after its last task, on the tasks of its stream; nothing is written.

    Example: rankwise evaluate runs/digits-mora-seed0 --task digits-1

    Args:
        folder: The folder of a run. The scores of a finished one are the last row of its matrix.
        task: Score on this task only. Default: all.

    """
    with loading():
        check_run(folder)
        check_tasks(folder, [task] if task is not None else [], "--task")
        from rankwise import saved
        from rankwise.reporting.tables import scores_table, show

    scored = saved.evaluate(folder, task=task)
    if json:
        print_json(scored)
    else:
        show(scores_table(scored))
