"""Tables of figures: drawn with rich where stdout is a terminal, as aligned plain text elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table as Drawn
from rich.text import Text


@dataclass(frozen=True)
class Table:
    """Rows of text under a title."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numbers_from: int = 1
    """The first column that holds numbers; columns from there on are aligned to the right."""
    bold: frozenset[tuple[int, int]] = frozenset()
    """Cells (row, column) that stand out."""


def show(table: Table, console: Console | None = None) -> None:
    """Print a table to stdout, or to `console`."""
    console = console or Console()
    if console.is_terminal:
        console.print(drawn(table))
    else:
        console.print(plain(table), markup=False, highlight=False, soft_wrap=True)


def drawn(table: Table) -> Drawn:
    """Return the table for a terminal."""
    grid = Drawn(box=SIMPLE_HEAD, title=table.title, title_justify="left", title_style="bold", header_style="dim")
    for i, name in enumerate(table.columns):
        numeric = i >= table.numbers_from
        least = max((len(row[i]) for row in table.rows), default=0) if numeric or i == 0 else None
        grid.add_column(Text(name), justify="right" if numeric else "left", min_width=least)  # a header may wrap
    for i, row in enumerate(table.rows):
        grid.add_row(*(Text(cell, style="bold" if (i, j) in table.bold else "") for j, cell in enumerate(row)))
    return grid


def plain(table: Table) -> str:
    """Return the table as lines of text, columns aligned.

    >>> print(plain(Table("R", ("after", "a"), (("a", "1.00"),))))
    R
    after     a
    a      1.00
    """
    lines = [table.columns, *table.rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(table.columns))]
    return "\n".join([table.title, *(_aligned(line, widths, table.numbers_from) for line in lines)])


def _aligned(cells: Sequence[str], widths: Sequence[int], numbers_from: int) -> str:
    padded = (
        cell.rjust(width) if i >= numbers_from else cell.ljust(width)
        for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
    )
    return "  ".join(padded).rstrip()


def number(value: float | None) -> str:
    """Write a score: two decimals, "-" where there is none.

    >>> number(0.987), number(None), number(-0.001)
    ('0.99', '-', '0.00')
    """
    return "-" if value is None else f"{round(value, 2) + 0.0:.2f}"


def matrix_table(results: Mapping[str, Any], title: str = "", width: int | None = None) -> Table:
    """Return R of a run: a row after each task, a column a task; the diagonal, scores just after learning, stands out.

    Tasks are numbered instead of named in the header where the names would take more than `width` characters.
    """
    tasks, matrix = list(results["tasks"]), list(results["matrix"])
    learnt = enumerate(zip(tasks[: len(matrix)], matrix, strict=True))
    rows = [(f"{i + 1} {task}", *map(number, scores)) for i, (task, scores) in learnt]
    diagonal = frozenset((i, i + 1) for i in range(len(matrix)))
    if any(score is not None for score in results["zero_shot"]):
        rows.insert(0, ("nothing", *map(number, results["zero_shot"])))
        diagonal = frozenset((i + 1, j) for i, j in diagonal)
    header = [str(i + 1) for i in range(len(tasks))] if width and _wide(tasks, width) else tasks
    caption = f"R: {results['metric']} on each task (columns) after learning each (rows)"
    return Table(f"{title}: {caption}" if title else caption, ("after", *header), tuple(rows), bold=diagonal)


def _wide(tasks: Sequence[str], width: int) -> bool:
    first = max(len(task) for task in tasks) + 8
    return first + sum(max(len(task), 4) + 3 for task in tasks) > width


SUMMARY = (
    ("final average", "final_average"),
    ("forgetting (first - last)", "forgetting_first_minus_last"),
    ("learning accuracy", "learning_accuracy"),
    ("validation final", "validation_final_average"),
)
"""Column of the summary -> key of results.json."""


def summary_table(runs: Mapping[str, Mapping[str, Any]]) -> Table:
    """Return one row of figures a run, by label."""
    rows = tuple((label, *(number(results[key]) for _, key in SUMMARY)) for label, results in runs.items())
    return Table("summary", ("run", *(title for title, _ in SUMMARY)), rows)


def methods_table(records: Sequence[Mapping[str, Any]]) -> Table:
    """Return the list of methods from their records."""
    rows = tuple(
        (r["slug"], r["title"], r["paper"], r["axis"], "yes" if r["mergeable"] else "no", r["peft"] or "-")
        for r in records
    )
    return Table("methods", ("method", "title", "paper", "axis", "merges", "PEFT"), rows, numbers_from=6)


def log_table(records: Sequence[Mapping[str, Any]]) -> Table:
    """Return what a run learnt when, from `rankwise.log`: a row a task."""
    rows = []
    for i, record in enumerate(records):
        known = [score for score in record["scores"] if score is not None]
        own = record["scores"][i] if len(record["scores"]) > i else None
        mean = sum(known) / len(known) if known else None
        took = "-" if record["wall_seconds"] is None else f"{record['wall_seconds']:.1f} s"
        when = record["time"][:19].replace("T", " ")
        cells = (str(record["steps"]), number(own), number(mean), took, when, record["snapshot"] or "-")
        rows.append((f"{i + 1} {record['task']}", *cells))
    columns = ("task", "steps", "its score", "mean of all scored", "wall", "learnt at (UTC)", "snapshot")
    return Table("what was learnt when", columns, tuple(rows))


def scores_table(scored: Mapping[str, Any]) -> Table:
    """Return the scores of a saved run, from `rankwise.evaluate`: a row a task."""
    lines = zip(scored["tasks"], scored["scores"], scored["validation"], strict=True)
    rows = tuple((task, number(test), number(held)) for task, test, held in lines)
    learnt = scored["learnt"][-1] if scored["learnt"] else "nothing"
    return Table(f"{scored['metric']} after {learnt}", ("task", "test", "validation"), rows)


def chosen_table(record: Mapping[str, Any]) -> Table:
    """Return what a sweep picked for each method, from its record."""
    rows = []
    for method, choice in record["chosen"].items():
        values = choice["values"]
        text = "every run failed" if values is None else " ".join(f"{k}={v}" for k, v in values.items()) or "-"
        edge = f"at the edge: {', '.join(choice['at_edge'])}" if choice["at_edge"] else ""
        rows.append((method, text, number(choice["validation"]), edge))
    return Table("picked on validation data", ("method", "settings", "validation", ""), tuple(rows), numbers_from=2)
