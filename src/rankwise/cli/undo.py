"""`rankwise undo`: take the last task back."""

from __future__ import annotations

import shlex
from pathlib import Path

from rankwise.cli.common import Json, check_run, loading, print_json


def undo(folder: Path, /, *, json: Json = False) -> None:
    """Take a run back to before its last task, bit for bit; `rankwise resume` relearns it to the same bits.

    Example: rankwise undo runs/digits-mora-seed0

    Args:
        folder: The folder of a run. Events, snapshots, matrix, results, report and adapter go back; a task under way
            goes too.

    """
    with loading():
        check_run(folder)
        from rankwise import saved
        from rankwise.reporting.terminal import progress, show_results

    with progress() as watch:
        done = saved.undo(folder, watch=watch)
    if json:
        print_json(done)
        return
    print(f"undone: {done['undone']}; `rankwise resume {shlex.quote(str(folder))}` learns it again\n")
    show_results(done["results"], folder)
