"""What was measured, as records (`claims.json`) and as a page (`CLAIMS.md`)."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from rankwise.claims import slugs
from rankwise.claims.harness.claim import ORDER, Claim, Threshold, interval_of, worst
from rankwise.claims.harness.measuring import Outcome
from rankwise.files import load_json, write_file

Record = dict[str, Any]
JSON_NAME, PAGE_NAME = "claims.json", "CLAIMS.md"
VALUE_COLUMNS = ("value", "mean", "95 % interval", "seeds", "threshold", "verdict")

HEAD = """# Claims

Published claims in miniature, measured by `rankwise claims --write`; this page and `claims.json` are written by that
command and not by hand. Each claim was measured for several seeds, every seed on one thread; intervals are 95 % Student
intervals of the mean over seeds, seconds are processor seconds of all seeds together.

A threshold judged on the mean **holds** if the whole interval meets it, **does not hold** if the mean misses it, and is
**undecided** if the mean meets it and the interval does not. A threshold judged on seeds holds if the share of seeds
that it names meets it. A claim has the worst verdict of its thresholds; one whose measurement failed does not hold.
"""


def record(outcome: Outcome) -> Record:
    """Return one claim's row: what is claimed, what was measured, how each threshold and the claim are judged."""
    claim = outcome.claim
    names = list(dict.fromkeys([*(t.value for t in claim.thresholds), *(n for s in outcome.seeds for n in s.values)]))
    columns = {name: [seed.values.get(name) for seed in outcome.seeds] for name in names} if outcome.seeds else {}
    judged = [judgement(threshold, columns) for threshold in claim.thresholds] if outcome.seeds else []
    return {
        **stated(claim),
        "verdict": worst([row["verdict"] for row in judged]) if judged else "not measured",
        "missing": outcome.missing,
        "errors": [seed.error for seed in outcome.seeds if seed.error],
        "seeds": len(outcome.seeds),
        "seconds": round(sum(seed.seconds for seed in outcome.seeds), 1),
        "values": {name: summary(column) for name, column in columns.items()},
        "thresholds": judged,
        "machine": machine(),
    }


def stated(claim: Claim) -> Record:
    """Return what a claim says, as JSON values."""
    names = ("slug", "number", "title", "source", "statement", "note")
    return {name: getattr(claim, name) for name in names}


def judgement(threshold: Threshold, columns: Mapping[str, Sequence[float | None]]) -> Record:
    """Return a threshold with its verdict over the values of all seeds."""
    return {**asdict(threshold), "text": str(threshold), "verdict": threshold.judge(columns[threshold.value])}


def summary(values: Sequence[float | None]) -> Record:
    """Return one value over seeds: all of them, their mean and its interval."""
    interval = interval_of(values)
    low, mean, high = (interval.low, interval.mean, interval.high) if interval else (None, None, None)
    return {"seeds": list(values), "mean": mean, "low": low, "high": high}


def machine() -> Record:
    """Return what the figures were measured with."""
    return {"python": platform.python_version(), "torch": metadata.version("torch"), "system": platform.system()}


def merge(old: Iterable[Record], new: Iterable[Record]) -> list[Record]:
    """Return the rows of all claims there are: the new ones, and the old ones of claims not measured this time.

    A claim that this machine cannot measure keeps the row it had.
    """
    rows = {(row["slug"], row["number"]): row for row in old}
    rows |= {key: row for row in new if (key := (row["slug"], row["number"])) not in rows or row["seeds"]}
    return [rows[key] for key in sorted(rows) if key[0] in slugs()]


def write(folder: Path, new: Iterable[Record]) -> list[Path]:
    """Write `claims.json` and `CLAIMS.md` in `folder`, rows of other claims kept; return the two files."""
    files = [folder / JSON_NAME, folder / PAGE_NAME]
    old = load_json(files[0]) if files[0].is_file() else []
    rows = merge(old, new)
    write_file(files[0], json.dumps(rows, indent=1, allow_nan=False, ensure_ascii=False).encode() + b"\n")
    write_file(files[1], page(rows).encode())
    return files


def page(rows: Sequence[Record]) -> str:
    """Return the whole page."""
    counts = {verdict: sum(row["verdict"] == verdict for row in rows) for verdict in reversed(ORDER)}
    counted = ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count)
    minutes = sum(row["seconds"] for row in rows) / 60
    total = f"{len(rows)} claims: {counted}. {minutes:.1f} minutes of one processor in all."
    header = ["| claim | about | verdict | seeds | seconds |", "|---|---|---|---|---|"]
    index = [
        f"| {row['slug']} {row['number']} | {row['title']} | {row['verdict']} | {row['seeds']} | {row['seconds']:.0f} |"
        for row in rows
    ]
    return "\n".join([HEAD, total, "", *header, *index, *(section(row) for row in rows)]) + "\n"


def section(row: Record) -> str:
    """Return one claim's part of the page."""
    lines = ["", f"## {row['slug']} {row['number']}: {row['title']}", "", f"{row['statement']} ({row['source']})", ""]
    lines += [f"**{row['verdict']}**" + (f": {row['missing']}" if row["missing"] else "")]
    lines += [f"\nFailed: {error}" for error in row["errors"]]
    if row["values"]:
        lines += ["", *(f"| {' | '.join(cells)} |" for cells in (VALUE_COLUMNS, ("---",) * 6, *value_rows(row)))]
    return "\n".join([*lines, *(["", row["note"]] if row["note"] else [])])


def value_rows(row: Record) -> list[tuple[str, ...]]:
    """Return VALUE_COLUMNS as text: one row a threshold, then the values that need not meet anything."""
    rest = row["values"].keys() - {threshold["value"] for threshold in row["thresholds"]}
    bare = [{"value": name, "text": "", "verdict": ""} for name in row["values"] if name in rest]
    return [_value_row(threshold, row["values"][threshold["value"]]) for threshold in [*row["thresholds"], *bare]]


def _value_row(threshold: Record, values: Record) -> tuple[str, ...]:
    interval = "-" if values["low"] is None else f"{digits(values['low'])} to {digits(values['high'])}"
    each = ", ".join(map(digits, values["seeds"]))
    return (threshold["value"], digits(values["mean"]), interval, each, threshold["text"], threshold["verdict"])


def digits(value: float | None) -> str:
    """Write a number with three significant digits; a dash where there is none.

    >>> digits(0.98765), digits(1234.5), digits(3.2e-9), digits(None)
    ('0.988', '1234', '3.2e-09', '-')
    """
    if value is None:
        return "-"
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
