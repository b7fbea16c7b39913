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
    low: frozenset[tuple[int, int]] = frozenset()
    """Cells that are a reason to look twice: red, where there are colours."""


def show(table: Table, console: Console | None = None) -> None:
    """Print a table to stdout, or to `console`: a row a paragraph on a terminal that is too narrow for it."""
    console = console or Console()
    if console.is_terminal and sum(least + 3 for least in _least(table)) > console.width:
        console.print(stacked(table), markup=False, highlight=False, soft_wrap=True)
    elif console.is_terminal:
        console.print(drawn(table))
    else:
        console.print(plain(table), markup=False, highlight=False, soft_wrap=True)


def drawn(table: Table) -> Drawn:
    """Return the table for a terminal."""
    grid = Drawn(box=SIMPLE_HEAD, title=table.title, title_justify="left", title_style="bold", header_style="dim")
    least = _least(table)
    for i, name in enumerate(table.columns):
        numeric = i >= table.numbers_from
        grid.add_column(Text(name), justify="right" if numeric else "left", min_width=least[i])  # a header may wrap
    for i, row in enumerate(table.rows):
        grid.add_row(*(Text(cell, style=_style(table, (i, j))) for j, cell in enumerate(row)))
    return grid


def _least(table: Table) -> list[int]:
    """Return the characters that each column needs: numbers stay on one line, words stay whole."""
    least = []
    for i, name in enumerate(table.columns):
        cells = [row[i] for row in table.rows]
        words = [*name.split(), *(cells if i >= table.numbers_from else " ".join(cells).split())]
        least.append(max(map(len, words), default=1))
    return least


def stacked(table: Table) -> str:
    """Return each row as lines of its own, one a cell, under the row's name.

    >>> print(stacked(Table("means", ("run", "final average", "seeds"), (("lora", "0.50", "3"),))))
    means
    lora
      final average  0.50
      seeds          3
    """
    width = max(len(name) for name in table.columns[1:])
    lines = [table.title]
    for row in table.rows:
        lines += [
            row[0],
            *(f"  {name.ljust(width)}  {cell}" for name, cell in zip(table.columns[1:], row[1:], strict=True)),
        ]
    return "\n".join(lines)


def _style(table: Table, cell: tuple[int, int]) -> str:
    return "bold" if cell in table.bold else "red" if cell in table.low else ""


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

    Tasks are numbered instead of named in the header where the names would take more than `width` characters. Where
    numbers would, too, there is a row a task instead, from its score just after it was learnt to that at the end.
    """
    tasks, matrix = list(results["tasks"]), list(results["matrix"])
    if width and _first(tasks) + 7 * len(tasks) > width:
        return ends_table(results, title)
    learnt = enumerate(zip(tasks[: len(matrix)], matrix, strict=True))
    rows = [(f"{i + 1} {task}", *map(number, scores)) for i, (task, scores) in learnt]
    diagonal = frozenset((i, i + 1) for i in range(len(matrix)))
    low = frozenset((i, j + 1) for i in range(len(matrix)) for j in range(i) if _lost(matrix, j, i))
    if any(score is not None for score in results["zero_shot"]):
        rows.insert(0, ("nothing", *map(number, results["zero_shot"])))
        diagonal, low = (frozenset((i + 1, j) for i, j in cells) for cells in (diagonal, low))
    header = [str(i + 1) for i in range(len(tasks))] if width and _wide(tasks, width) else tasks
    caption = f"R: {results['metric']} on each task (columns) after learning each (rows)"
    return Table(f"{title}: {caption}" if title else caption, ("after", *header), tuple(rows), bold=diagonal, low=low)


def ends_table(results: Mapping[str, Any], title: str = "") -> Table:
    """Return a row a task: its score just after it was learnt, at the end, and what changed."""
    matrix = list(results["matrix"])
    last: Sequence[float | None] = matrix[-1] if matrix else []
    own = [row[j] for j, row in enumerate(matrix)]
    tasks = list(zip(results["tasks"], own, last, strict=False))
    rows = tuple((f"{j + 1} {task}", number(a), number(b), _change(a, b)) for j, (task, a, b) in enumerate(tasks))
    low = frozenset((j, 3) for j in range(len(own)) if _lost(matrix, j, len(matrix) - 1))
    caption = f"{results['metric']} on each task, from just learnt to the end"
    columns = ("task", "just learnt", "at the end", "change")
    return Table(f"{title}: {caption}" if title else caption, columns, rows, low=low)


def verdict(results: Mapping[str, Any]) -> str:
    """Say in one line how a run went.

    >>> verdict({"method": "lora", "stream": "birds", "tasks": ["a", "b"], "matrix": [[1.0, None], [0.6, 0.9]],
    ...          "final_average": 0.75, "forgetting_first_minus_last": 0.4})
    'lora on birds: 2 of 2 tasks learnt, 0.75 on average at the end; lost since learnt: 0.40, most on a (1.00 to 0.60)'
    """
    matrix, tasks = results["matrix"], results["tasks"]
    learnt = f"{len(matrix)} of {len(tasks)} tasks learnt"
    lost = results["forgetting_first_minus_last"]
    final = f"{number(results['final_average'])} on average at the end"
    text = f"{results['method']} on {results['stream']}: {learnt}, {final}"
    if lost is None or len(matrix) < 2:
        return text
    ends = [(row[j], matrix[-1][j]) for j, row in enumerate(matrix)]
    drops = [(a - b, tasks[j], f"{number(a)} to {number(b)}") for j, (a, b) in enumerate(ends) if None not in (a, b)]
    drop, task, how = max(drops)
    return f"{text}; lost since learnt: {number(lost)}" + (f", most on {task} ({how})" if drop > 0 else "")


LOST = 0.1
"""A score that has fallen by so much since its task was learnt is marked."""


def _lost(matrix: Sequence[Sequence[float | None]], task: int, row: int) -> bool:
    own, now = matrix[task][task], matrix[row][task]
    return own is not None and now is not None and own - now >= LOST - 1e-9


def _change(before: float | None, after: float | None) -> str:
    return "-" if before is None or after is None else f"{round(after - before, 2) + 0.0:+.2f}"


def _first(tasks: Sequence[str]) -> int:
    """Characters of the first column."""
    return max(len(task) for task in tasks) + 8


def _wide(tasks: Sequence[str], width: int) -> bool:
    return _first(tasks) + sum(max(len(task), 4) + 3 for task in tasks) > width


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
