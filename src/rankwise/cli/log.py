"""`rankwise log`: what was learnt when."""

from __future__ import annotations

from pathlib import Path

from rankwise.cli.common import Json, check_run, print_json


def log(folder: Path, /, *, json: Json = False) -> None:
    """List what a run learnt and when: task, steps, scores, wall seconds, snapshot.

    Example: rankwise log runs/digits-mora-seed0

    Args:
        folder: The folder of a run, finished or not.

    """
    check_run(folder)
    from rankwise import saved
    from rankwise.reporting.tables import log_table, show

    records = saved.log(folder)
    if json:
        print_json(records)
    elif records:
        show(log_table(records))
    else:
        print("nothing has been learnt yet")
