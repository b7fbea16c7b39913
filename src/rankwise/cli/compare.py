"""`rankwise compare`: several runs side by side."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter as Option

from rankwise.cli.common import Json, check_runs, print_json, words


def compare(
    folders: Annotated[tuple[Path, ...], Option(negative=())],
    /,
    *,
    keys: Annotated[str | None, Option(show_default=False)] = None,
    baseline: str | None = None,
    json: Json = False,
) -> None:
    """Compare runs: means with bootstrap intervals over seeds, and differences, paired where seeds match.

    Example: rankwise compare runs/sweep --baseline lora

    Args:
        folders: Runs, or folders that hold runs (a sweep's). Runs that differ in the seed only make one row.
        keys: Numbers of results.json, separated by commas. Default: final average, forgetting, learning accuracy.
        baseline: The row that the others are compared with. Default: the first.

    """
    check_runs(folders)
    from rankwise.reporting import compare as comparing
    from rankwise.reporting.tables import show

    found = comparing.compare(folders, words(keys) if keys else comparing.KEYS, baseline)
    for note in found["notes"]:
        print(f"note: {note}", file=sys.stderr)
    if json:
        print_json(found)
        return
    for i, table in enumerate(comparing.compare_tables(found)):
        print("\n" if i else "", end="")
        show(table)
