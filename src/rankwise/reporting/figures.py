"""The figures of a report: each a drawing for papers, what the page shows in its place, where its numbers stand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rankwise.reporting import drawing, elements, records
from rankwise.reporting.drawing import SERIES, Drawing, Line, Point
from rankwise.reporting.markup import Markup, joined, tag
from rankwise.reporting.records import Points, Record

Rows = Mapping[str, Sequence[Record]]
"""Label -> runs that differ in the seed only; lines of figures are means over them."""

MOST_CUTS = 40
"""Ends of tasks that are drawn."""
MOST_POINTS = 240
"""Places at which a line of losses is drawn."""
NARROW = 5
"""Columns that fit into half of the page."""
GATES = {
    "block_share": "Share of the mixture weight",
    "active_atoms": "Ranks that act on a token",
    "pass_rate": "Tokens on which a rank acts (share)",
}
"""What gates measure -> its title; other names stand for themselves."""


@dataclass(frozen=True)
class Figure:
    """One figure."""

    name: str
    """Of its file, without suffix."""
    title: str
    draw: Callable[[], Drawing]
    """Makes the drawing; a page that shows a table in its place never asks for it."""
    shown: Markup
    """What the page shows: the drawing, or a table as a heat map, and the numbers."""
    source: str
    """Files and keys that the numbers come from, between backticks."""
    note: str = ""
    """How to read it."""
    wide: bool = False
    """Whether it needs the width of the page."""

    def on_page(self, level: int, prefix: str = "") -> Markup:
        """Return it as a section with a heading of the given level."""
        note = elements.paragraph(self.note) if self.note else Markup()
        told = elements.source(self.source)
        name = f"{prefix}{self.name}"
        return elements.section(name, self.title, note, self.shown, told, level=level, wide=self.wide)


def of_run(record: Record) -> list[Figure]:
    """Return every figure of one run."""
    rows = {record.results["method"]: [record]}
    return [*scores(record), *training(rows), *adapter(record)]


def scores(record: Record) -> list[Figure]:
    """Return what one run scored: R, and its columns and averages over time."""
    rows = {record.results["method"]: [record]}
    return [matrix(record), averages(rows), tasks(rows)]


def adapter(record: Record) -> list[Figure]:
    """Return the ranks of one run and what its gates did."""
    found = ranks(record)
    return [*([found] if found else []), *gates(record)]


def training(rows: Rows) -> list[Figure]:
    """Return the losses, if any were logged."""
    found = loss_curves(rows)
    return [found] if found else []


def of_rows(table: Mapping[str, Any], rows: Rows) -> list[Figure]:
    """Return the figures that compare the rows of a table of `compare`."""
    found = tradeoff(table)
    return [*([found] if found else []), averages(rows), tasks(rows), *training(rows)]


def rows_of(table: Mapping[str, Any]) -> Rows:
    """Read the runs of a table of `compare`, by label."""
    return {row["label"]: [records.read(Path(folder)) for folder in row["folders"]] for row in table["rows"]}


def matrix(record: Record) -> Figure:
    """R: a row after each task, a column a task."""
    results, metric = record.results, record.results["metric"]
    known = any(score is not None for score in results["zero_shot"])
    rows = [*(["nothing"] if known else []), *record.rows]
    values = [*([results["zero_shot"]] if known else []), *results["matrix"]]
    caption = f"{metric} on each task (columns) after learning each (rows)"
    most = 1.0 if _shares(values) else _most(values)
    return Figure(
        "matrix",
        "After each task, the score on every task",
        partial(drawing.heat_map, rows, record.tasks, values, caption, [most]),
        elements.heat_table(caption, "after", rows, record.tasks, values, [most]),
        "`results.json`: `matrix`, `zero_shot` (also `matrix.csv`)",
        "Down a column, a task's score as later tasks are learnt; bold, its score just after it was learnt.",
        wide=len(record.tasks) > NARROW,
    )


def tasks(rows: Rows) -> Figure:
    """Each task's score over time: a small chart a task, a line a row."""
    first = next(iter(rows.values()))[0]
    names, metric = first.tasks, first.results["metric"]
    lines = {
        j: [Line(label, _over_time(runs, j), i) for i, (label, runs) in enumerate(_some(rows).items())]
        for j in range(len(names))
    }
    values = [y for each in lines.values() for line in each for _, y in line.points if y is not None]
    x = drawing.counted("tasks learnt", names)
    x = drawing.Axis(x.title, x.ticks, min([1.0, *(a for line in lines[0] for a, _ in line.points)]), x.high)
    y = drawing.axis("", values, None, 1.0 if _shares([values]) else None)
    panels = [
        drawing.small_chart(name, lines[j], x, y, f"{metric} on {name}, {_ends(lines[j])}")
        for j, name in enumerate(names)
        if j in elements.thinned(len(names), elements.MOST_COLUMNS)
    ]
    label = f"{metric} on each task as tasks are learnt"
    cells = [
        (name, *(elements.figure(v) for line in lines[j] for v in _edges(line, j))) for j, name in enumerate(names)
    ]
    columns = ("task", *(f"{label}: {when}" for label in _some(rows) for when in ("just learnt", "at the end")))
    shown = joined(
        _key(list(_some(rows))) if len(rows) > 1 else Markup(),
        tag("div", *(panel.inline() for panel in panels), class_="panels"),
        elements.folded("The numbers", elements.table(label, columns, cells)),
    )
    return Figure(
        "tasks",
        "Each task over time",
        partial(drawing.grid_of, panels, 3, label, list(_some(rows))),
        shown,
        f"`results.json`{_each(rows)}: `matrix`, `zero_shot`",
        f"One panel a task; to the right, more tasks are learnt, and the dot is where it ends.{_cut(rows)}",
        wide=True,
    )


def averages(rows: Rows) -> Figure:
    """The mean score on the tasks learnt so far: a line a row."""
    first = next(iter(rows.values()))[0]
    metric = first.results["metric"]
    lines = [
        Line(label, records.mean_points([records.average_so_far(run.results) for run in runs]), i)
        for i, (label, runs) in enumerate(_some(rows).items())
    ]
    values = [y for line in lines for _, y in line.points if y is not None]
    y = drawing.axis(f"mean {metric}", values, None, 1.0 if _shares([values]) else None)
    label = f"mean {metric} on the tasks learnt so far"
    tables = [dict(line.points) for line in lines]
    cells = [
        (f"{i + 1} {name}", *(elements.figure(table.get(i + 1.0)) for table in tables))
        for i, name in enumerate(first.tasks)
    ]
    drawn = drawing.line_chart(lines, drawing.counted("tasks learnt", first.tasks), y, f"{label}; {_ends(lines)}")
    return Figure(
        "averages",
        "The mean of the tasks learnt so far",
        lambda: drawn,
        joined(
            drawn.inline(),
            elements.folded("The numbers", elements.table(label, ("after task", *_some(rows)), cells)),
        ),
        f"`results.json`{_each(rows)}: row t of `matrix`, mean of its first t cells",
        f"A line that stays up keeps what was learnt.{_cut(rows)}",
    )


def tradeoff(table: Mapping[str, Any]) -> Figure | None:
    """Forgetting against learning accuracy: a point a row of a comparison; None where no row has both."""
    keys = ("learning_accuracy", "forgetting_first_minus_last")
    found = {row["label"]: [row["intervals"][key] for key in keys] for row in table["rows"]}
    points = [
        Point(label, i, lost["mean"], learnt["mean"], _reach(lost), _reach(learnt))
        for i, (label, (learnt, lost)) in enumerate(list(found.items())[:SERIES])
        if learnt is not None and lost is not None
    ]
    if not points:
        return None
    x = drawing.axis("forgetting (first - last)", [v for p in points for v in (p.x, *(p.x_ends or ()))], None, None)
    y = drawing.axis("learning accuracy", [v for p in points for v in (p.y, *(p.y_ends or ()))], None, None)
    told = "; ".join(f"{p.label}: forgetting {p.x:.3f}, learning accuracy {p.y:.3f}" for p in points)
    drawn = drawing.point_chart(points, x, y, f"Forgetting against learning accuracy. {told}")
    cells = [(p.label, elements.figure(p.y), elements.figure(p.x)) for p in points]
    columns = ("method", "learning accuracy", "forgetting (first - last)")
    return Figure(
        "tradeoff",
        "What is learnt against what is lost",
        lambda: drawn,
        joined(drawn.inline(), elements.folded("The numbers", elements.table("Means over seeds", columns, cells))),
        "`results.json` of each run: `learning_accuracy`, `forgetting_first_minus_last`",
        "Up is learnt better, left is forgotten less. Whiskers are 95 % bootstrap intervals over seeds."
        + (f" Only the first {SERIES} are drawn." if len(table["rows"]) > SERIES else ""),
    )


def loss_curves(rows: Rows) -> Figure | None:
    """The losses at the steps at which they were logged: a line a term of one run, or a line a row; None for none."""
    runs = [run for group in rows.values() for run in group]
    if len(runs) == 1:
        found = records.losses(runs[0])
    else:
        grouped = {label: [records.whole_loss(run) for run in group] for label, group in _some(rows).items()}
        found = {label: records.mean_points(lines) for label, lines in grouped.items()}
    lines = [Line(label, points, i) for i, (label, points) in enumerate(list(found.items())[:SERIES]) if points]
    if not lines:
        return None
    ends = {label: records.task_ends(runs[0] if len(runs) == 1 else rows[label][0]) for label in found}
    longest = max((ends[line.label] for line in lines), key=len)
    x = drawing.axis("steps", [a for line in lines for a, _ in line.points], 0.0)
    y = drawing.axis("loss", [b for line in lines for _, b in line.points if b is not None], 0.0)
    kept = [Line(line.label, records.broken(_thin(line.points), ends[line.label]), line.series) for line in lines]
    cuts = [end for _, end in longest[:-1]] if len(longest) <= MOST_CUTS else []
    drawn = drawing.line_chart(kept, x, y, f"loss over steps, first and last: {_ends(lines)}", cuts)
    cells = [row for line in lines for row in _loss_rows(line, ends[line.label])]
    columns = ("loss", "in task", "to step", "first logged", "last logged")
    summed = "" if len(runs) == 1 else ", summed over the terms"
    return Figure(
        "loss",
        "Losses",
        lambda: drawn,
        joined(
            drawn.inline(),
            elements.folded("The numbers", elements.table("Losses within each task", columns, cells, numbers_from=2)),
        ),
        f"`events.jsonl`{_each(rows)}: `losses` and `step` of the `step` events{summed}",
        f"Logged every {runs[0].settings['train.log_every']} steps; upright rules end a task and its lines."
        + (f" Of each line {MOST_POINTS} places are drawn." if any(len(e.points) > MOST_POINTS for e in lines) else ""),
    )


def gates(record: Record) -> list[Figure]:
    """What the gates did at the end: each block's part in it and what else was measured, task by task, site by site."""
    last = record.results["diagnostics"][-1] if record.results["diagnostics"] else []
    by_task = dict(zip(record.tasks, last, strict=True)) if last else {}
    held = record.results.get("diagnostics_by_site", {})
    by_site = {site["name"]: held[site["name"]] for site in record.adapter.get("sites", ()) if site["name"] in held}
    tables = (
        ("tasks", "test rows of", by_task, "`results.json`: last row of `diagnostics`"),
        ("sites", "site", by_site, "`results.json`: `diagnostics_by_site`, over the test rows of all tasks"),
    )
    names = sorted({name for cell in by_task.values() for name in cell})
    several = [name for name in names if max(len(cell[name]) for cell in by_task.values() if name in cell) > 1]
    single = [name for name in names if name not in several]
    found = [
        [*(_blocks(record, name, *table) for name in several), *([_activity(single, *table)] if single else [])]
        for table in tables
        if table[2]
    ]
    return [figure for each in found for figure in each]


Measured = Mapping[str, Mapping[str, Sequence[float]]]


def _blocks(record: Record, name: str, by: str, corner: str, values: Measured, source: str) -> Figure:
    """Return what a gate measured of each block: a row for each task or site that has it, a column a block."""
    rows = {row: list(cell[name]) for row, cell in values.items() if name in cell}
    width = max(map(len, rows.values()))
    blocks = record.blocks()
    columns = blocks if len(blocks) == width else [str(i + 1) for i in range(width)]
    cells: list[list[float | None]] = [[*each, *([None] * (width - len(each)))] for each in rows.values()]
    title = f"{_measured(name)}, by {by[:-1]}"
    return Figure(
        f"{name.replace('_', '-')}-{by}",
        title,
        partial(drawing.heat_map, list(rows), columns, cells, title, [_most(cells)]),
        elements.heat_table(title, corner, list(rows), columns, cells, [_most(cells)]),
        source,
        "Columns are the blocks of ranks; what a row lacks to 1 went to none of them." * (name == "block_share"),
        wide=width > (NARROW if by == "tasks" else NARROW // 2),
    )


def _activity(names: Sequence[str], by: str, corner: str, values: Measured, source: str) -> Figure:
    """Return what gates measured as one number each: a row for each task or site, a column a name."""
    rows = {row: [cell[name][0] if name in cell else None for name in names] for row, cell in values.items() if cell}
    columns, cells, title = [_measured(name) for name in names], list(rows.values()), f"Activity of gates, by {by[:-1]}"
    most = [max(_most([[row[j]] for row in cells]), 1.0) for j in range(len(names))]
    heat = elements.heat_table(title, corner, list(rows), columns, cells, most)
    draw = partial(drawing.heat_map, list(rows), columns, cells, title, most)
    return Figure(f"activity-{by}", title, draw, heat, source)


def _measured(name: str) -> str:
    return GATES[name] if name in GATES else name.replace("_", " ")


def ranks(record: Record) -> Figure | None:
    """Ranks of each site, block by block; None where the method has no adapter or no block is left."""
    blocks, sites = record.blocks(), record.adapter.get("sites", ())
    if not blocks:
        return None
    sizes = [{block["label"]: float(block["size"]) for block in site["blocks"]} for site in sites]
    cells = [[*(size.get(label) for label in blocks), sum(size.values())] for size in sizes]
    names, columns = [site["name"] for site in sites], [*blocks, "all"]
    caption = "Ranks of each site (rows), by block (columns)"
    alike = len({tuple(row) for row in cells}) == 1
    heat = elements.heat_table(caption, "site", names, columns, cells, [_most(cells)], ".0f")
    each = ", ".join(f"{label}: {size:.0f}" for label, size in sizes[0].items())
    each = each if len(blocks) <= NARROW else f"{len(blocks)} blocks"
    note = (
        f"{len(sites)} sites, {cells[0][-1]:.0f} ranks each ({each})."
        if alike
        else f"{len(sites)} sites, {_total(cells)} ranks in all."
    )
    return Figure(
        "ranks",
        "Ranks by site",
        partial(drawing.heat_map, names, columns, cells, caption, [_most(cells)], ".0f"),
        elements.folded("Each site", heat) if alike else heat,
        "`adapter/adapter.json`: `sites`, `blocks`",
        note,
        wide=True,
    )


def _total(cells: Sequence[Sequence[float | None]]) -> str:
    return f"{sum(row[-1] or 0.0 for row in cells):,.0f}"


def _some(rows: Rows) -> Rows:
    """Return as many rows as a chart can tell apart."""
    return dict(list(rows.items())[:SERIES])


def _cut(rows: Rows) -> str:
    return f" Only the first {SERIES} of {len(rows)} are drawn." if len(rows) > SERIES else ""


def _each(rows: Rows) -> str:
    return " of each run" if sum(map(len, rows.values())) > 1 else ""


def _over_time(runs: Sequence[Record], task: int) -> Points:
    return records.mean_points([records.over_time(run.results, task) for run in runs])


def _edges(line: Line, task: int) -> tuple[float | None, float | None]:
    """Return a task's score just after it was learnt, and at the end; None before that."""
    return dict(line.points).get(task + 1.0), line.points[-1][1] if line.points else None


def _ends(lines: Sequence[Line]) -> str:
    """Say in words where lines begin and end."""
    told = []
    for line in lines:
        known = [y for _, y in line.points if y is not None]
        told.append(f"{line.label}: {known[0]:.3f} to {known[-1]:.3f}" if known else f"{line.label}: not measured")
    return "; ".join(told)


def _key(labels: Sequence[str]) -> Markup:
    """Return the legend of a row of panels."""
    return drawing.legend(labels).inline()


def _thin(points: Sequence[tuple[float, float | None]]) -> Points:
    return [points[i] for i in elements.thinned(len(points), MOST_POINTS)]


def _loss_rows(line: Line, ends: Sequence[tuple[str, int]]) -> list[tuple[str, ...]]:
    """Return for each task a row: which loss, task, its last step, the first and the last value logged in it."""
    rows, before = [], 0
    for task, end in ends:
        inside = [value for step, value in line.points if before < step <= end]
        if inside:
            rows.append(
                (line.label, task, str(end), elements.figure(inside[0], ".4g"), elements.figure(inside[-1], ".4g"))
            )
        before = end
    return rows


def _reach(interval: Mapping[str, Any]) -> tuple[float, float] | None:
    return None if interval["low"] is None else (interval["low"], interval["high"])


def _shares(values: Sequence[Sequence[float | None]]) -> bool:
    """Say whether all numbers lie between 0 and 1, as accuracies and shares do."""
    return all(-1e-6 <= value <= 1 + 1e-6 for row in values for value in row if value is not None)


def _most(values: Sequence[Sequence[float | None]]) -> float:
    return max((value for row in values for value in row if value is not None), default=1.0)
