"""What was measured: tuned rates and scores from `benchmarks/results`, verdicts from `claims.json`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from text import table

from rankwise.learning.metrics import mean_interval

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
SCORES = ("final average", "forgetting", "learning")
HEAD = ("method", "learning rate", "seeds", *SCORES)
NAMES = ("final_average", "forgetting_first_minus_last", "learning_accuracy")
VERDICTS = ("holds", "undecided", "does not hold", "not measured")


@cache
def load(path: Path) -> Any:
    """Return the values of a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def scored(values: list[float | None]) -> str:
    """Return mean and half of the 95 % Student interval over seeds; a dash for what is not known."""
    found = mean_interval(values) if all(value is not None for value in values) else None
    if found is None:
        return "-"
    return f"{found.mean:.3f}" if found.high is None else f"{found.mean:.3f} ± {found.high - found.mean:.3f}"


def text_rows() -> Iterator[tuple[str, ...]]:
    """Yield a row of HEAD a method on four text tasks, the best final average first."""
    methods = load(RESULTS / "text4.json")["methods"]
    for entry in sorted(methods, key=lambda entry: -_mean([run["final"] for run in entry["runs"]])):
        runs = entry["runs"]
        scores = [scored([run[name] for run in runs]) for name in ("final", "forgetting", "learning")]
        yield (f"`{entry['method']}`", f"{runs[0]['lr']:g}", str(len(runs)), *scores)


def digit_rows() -> Iterator[tuple[str, ...]]:
    """Yield a row of HEAD a method and rate on the digits of the demo."""
    for row in load(RESULTS / "margin.json")["rows"]:
        name = f"`{row['method']}`" if row["method"] != "frozen" else "frozen base"
        rate = row["lr"] if row["method"] != "frozen" else "-"
        yield (name, rate, str(len(row["final_average"])), *(scored(row[score]) for score in NAMES))


def variant_rows() -> Iterator[tuple[str, ...]]:
    """Yield a row of HEAD a method on the digits at the rate that the first two tasks' validation rows pick."""
    sweep = load(RESULTS / "variants.json")
    final: dict[str, list[dict[str, Any]]] = {method: [] for method in sweep["plan"]["methods"]}
    for cell in sweep["cells"]:
        if cell["stage"] != "tune":
            final[cell["method"]].append(cell)
    for method, cells in sorted(final.items(), key=lambda item: -_mean([cell[NAMES[0]] for cell in item[1]])):
        choice = sweep["chosen"][method]
        rate = f"{choice['values']['train.lr']:g}{' (edge)' if choice['at_edge'] else ''}"
        yield (f"`{method}`", rate, str(len(cells)), *(scored([cell[name] for cell in cells]) for name in NAMES))


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def of_method(slug: str) -> str:
    """Return the table of what was measured of a method, or nothing."""
    streams = (
        ("four text tasks, MiniLM", text_rows()),
        ("digits, embedded base", digit_rows()),
        ("digits, rate picked on two tasks", variant_rows()),
    )
    rows = [(stream, *row[1:]) for stream, found in streams for row in found if row[0] == f"`{slug}`"]
    return table(("stream", *HEAD[1:]), rows) if rows else ""


def claims(slug: str | None = None) -> list[dict[str, Any]]:
    """Return the records of all claims, or of those about one method."""
    return [row for row in load(ROOT / "claims.json") if slug in (None, row["slug"])]


def claim_table(rows: list[dict[str, Any]], page: str) -> str:
    """Return claims with their verdicts; each links to its part of the claims page, found at `page`."""
    lines = [
        (f"[{row['slug']} {row['number']}]({page}#{anchor(row)})", row["title"], f"**{row['verdict']}**")
        for row in rows
    ]
    return table(("claim", "about", "verdict"), lines)


def anchor(row: dict[str, Any]) -> str:
    """Return the anchor of a claim's heading in CLAIMS.md, as the site makes it."""
    from markdown.extensions.toc import slugify

    return slugify(f"{row['slug']} {row['number']}: {row['title']}", "-")


def verdicts(slug: str) -> str:
    """Return the verdicts of a method's claims, counted."""
    found = [row["verdict"] for row in claims(slug)]
    return ", ".join(f"{verdict}: {found.count(verdict)}" for verdict in VERDICTS if verdict in found) or "-"
