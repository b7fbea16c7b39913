"""`rankwise resume`: continue an interrupted run."""

from __future__ import annotations

from pathlib import Path

from rankwise.cli.common import Json, check_run, loading, print_json, stoppable


def resume(folder: Path, /, *, json: Json = False) -> None:
    """Continue an interrupted run, to the bit; a finished one is only printed again.

    Example: rankwise resume runs/digits-mora-seed0

    Args:
        folder: The folder of a run, as `rankwise run` made it.

    """
    with loading():
        check_run(folder)
        from rankwise import api
        from rankwise.reporting.terminal import progress, show_results

    with stoppable(folder), progress() as watch:
        finished = api.resume(folder, watch=watch)
    if json:
        print_json(finished.results)
    else:
        show_results(finished.results, finished.path, report=finished.report)
