"""`rankwise claims`: published claims in miniature, measured."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter as Option
from cyclopts import validators

from rankwise.cli.common import Json, loading, print_json

AtLeastOne = Option(validator=validators.Number(gte=1), show_default=False)


def claims(
    *slugs: Annotated[str, Option(negative=())],
    seeds: Annotated[int | None, AtLeastOne] = None,
    jobs: Annotated[int | None, AtLeastOne] = None,
    write: Annotated[bool, Option(negative=(), show_default=False)] = False,
    json: Json = False,
) -> None:
    """Measure published claims in miniature: value, interval, threshold, and whether the claim holds.

    What is measured is kept below runs/claims, so that a measurement that was stopped goes on with the same command;
    delete the folder to measure everything again. A claim that does not hold is a finding, not an error.

    Example: rankwise claims mora osft --seeds 3

    Args:
        slugs: Methods or studies whose claims to measure. Default: all.
        seeds: Seeds a claim. Default: what each claim says, at least 3.
        jobs: Claims measured at the same time, on one thread each. Default: one for each processor.
        write: Write CLAIMS.md and claims.json to the current folder; rows of other claims there are kept.

    """
    with loading():
        import os

        from rankwise import claims as room

        chosen = list(dict.fromkeys(slugs)) or room.slugs()
        listed = [claim for slug in chosen for claim in room.claims_of(slug)]
        from rankwise.claims.harness import measuring, page

    rows = []
    try:
        for outcome in measuring.measure_all(listed, seeds, jobs or os.cpu_count() or 1, measuring.FOLDER):
            rows.append(page.record(outcome))
            if write:
                page.write(Path(), rows)
            if not json:
                _show(rows[-1])
    except KeyboardInterrupt:
        kept = f"what was measured is kept in {measuring.FOLDER}; the same command goes on"
        raise KeyboardInterrupt(f"stopped; {kept}") from None
    if json:
        print_json(rows)


def _show(row: dict[str, Any]) -> None:
    from rankwise.claims.harness.page import VALUE_COLUMNS, value_rows
    from rankwise.reporting.tables import Table, show

    why = "; ".join([*filter(None, [row["missing"]]), *row["errors"]])
    title = f"{row['slug']} {row['number']}: {row['title']}: {row['verdict']} ({row['seconds']:.0f} s)"
    show(Table(f"{title}: {why}" if why else title, VALUE_COLUMNS, tuple(value_rows(row)), numbers_from=6))
    print()
