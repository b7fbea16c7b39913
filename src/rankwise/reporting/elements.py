"""What pages are built from: tables, tables as heat maps, boxes that scroll by themselves, sections."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from rankwise.reporting.drawing import shade
from rankwise.reporting.markup import Markup, tag
from rankwise.reporting.tables import Table

MOST_ROWS, MOST_COLUMNS, MOST_CELLS = 250, 100, 10_000
"""A table shows at most so many; of more, every second or third and so on, and says so."""
SHORT, SHORT_ROW = 14, 32
"""Letters of the name of a column, or of a row on a wide page, that stay on one line."""
NOTHING = "–"

Cells = Sequence[Sequence[float | None]]


def figure(name: float | None, form: str = ".3f") -> str:
    """Write a number; an en dash where there is none.

    >>> figure(0.5), figure(-0.0001), figure(None), figure(12345.0, ",.0f")
    ('0.500', '0.000', '–', '12,345')
    """
    return NOTHING if name is None else f"{round(name, 6 if 'g' in form else 3) + 0.0:{form}}"


def scrolling(what: Markup, label: str) -> Markup:
    """Return `what` in a box that scrolls by itself where it is too wide, also by keyboard."""
    return tag("div", what, class_="scroll", tabindex="0", role="region", aria_label=label)


def table(caption: str, columns: Sequence[str], rows: Iterable[Sequence[str]], numbers_from: int = 1) -> Markup:
    """Return a table whose first column names the rows; columns from `numbers_from` on are aligned to the right."""
    head = tag("tr", *(tag("th", name, scope="col", class_=_side(i, numbers_from)) for i, name in enumerate(columns)))
    lines = (
        tag(
            "tr",
            _named(row[0]),
            *(tag("td", c, class_=_side(i, numbers_from)) for i, c in _after(row)),
        )
        for row in rows
    )
    whole = tag("table", tag("caption", tag("span", caption)), tag("thead", head), tag("tbody", *lines))
    return scrolling(whole, caption)


def of_text(drawn: Table) -> Markup:
    """Return a table of the terminal as one of the page."""
    return table(drawn.title, drawn.columns, drawn.rows, drawn.numbers_from)


def pairs(caption: str, values: Mapping[str, str], head: tuple[str, str] = ("key", "value")) -> Markup:
    """Return names with a value each."""
    return tag("div", table(caption, head, list(values.items()), numbers_from=2), class_="values")


def heat_table(
    caption: str,
    corner: str,
    rows: Sequence[str],
    columns: Sequence[str],
    values: Cells,
    most: Sequence[float] = (1.0,),
    form: str = ".3f",
) -> Markup:
    """Return numbers in a table whose cells are shaded from 0 to `most`: a heat map that can be read aloud.

    `most` is one number, or one a column; cells whose row and column have the same name are bold.
    """
    across = thinned(len(columns), MOST_COLUMNS)
    down = thinned(len(rows), min(MOST_ROWS, MOST_CELLS // len(across)))
    left_out = [
        f"{len(kept)} of {count} {what} are shown, evenly spaced"
        for kept, count, what in ((down, len(rows), "rows"), (across, len(columns), "columns"))
        if len(kept) < count
    ]
    told = "; ".join([caption, *left_out])
    head = tag("tr", tag("th", corner, scope="col"), *(_column(columns[j]) for j in across))
    lines = (
        tag(
            "tr",
            _named(rows[i]),
            *(_shaded(values[i][j], most[j % len(most)], form, rows[i] == columns[j]) for j in across),
        )
        for i in down
    )
    whole = tag("table", tag("caption", tag("span", told)), tag("thead", head), tag("tbody", *lines), class_="heat")
    return scrolling(whole, told)


def _column(name: str) -> Markup:
    return tag("th", name, scope="col", class_="n short" if len(name) <= SHORT else "n")


def _shaded(value: float | None, most: float, form: str, own: bool) -> Markup:
    if value is None:
        return tag("td", NOTHING, class_="none")
    return tag("td", figure(value, form), style=f"--v:{shade(value, most):.2f}", class_="own" if own else None)


def thinned(count: int, most: int) -> list[int]:
    """Return at most `most` of the places 0..count-1, evenly spaced, the first and the last among them.

    >>> thinned(3, 5), thinned(9, 3)
    ([0, 1, 2], [0, 4, 8])
    """
    return list(range(count)) if count <= most else [round(i * (count - 1) / (most - 1)) for i in range(most)]


def folded(summary: str, *what: Markup) -> Markup:
    """Return what is there for those who ask: closed until it is opened; the summary may be a heading."""
    return tag("details", tag("summary", summary), *what)


def source(text: str) -> Markup:
    """Return where the numbers of a figure come from; words between backticks are files and keys."""
    return paragraph(f"From {text}.", "source")


def section(name: str, title: str, *what: Markup, level: int = 2, wide: bool = False) -> Markup:
    """Return a part of the page with a heading of its own, to which `#name` leads; `wide`: across all columns."""
    head = tag(f"h{level}", title, id=f"{name}-title")
    about = {"aria_labelledby": f"{name}-title", "class_": "wide" if wide else None}
    return tag("section", head, *what, id=name, **about)


def listed(values: Mapping[str, str]) -> Markup:
    """Return the figures that matter most, each large under its name."""
    return tag("dl", *(tag("div", tag("dt", name), tag("dd", value)) for name, value in values.items()), class_="tiles")


def paragraph(text: str, kind: str | None = None) -> Markup:
    """Return a paragraph; words between backticks are code."""
    return tag("p", *_coded(text), class_=kind)


def _coded(text: str) -> list[str]:
    return [tag("code", piece) if i % 2 else piece for i, piece in enumerate(text.split("`"))]


def _named(name: str) -> Markup:
    """Return the head of a row; where it must, it breaks after dots and underscores, as readers expect of a name."""
    parts = re.split(r"(?<=[._])(?=[^\W\d])", name)
    pieces = [piece for part in parts for piece in (part, Markup("<wbr>"))][:-1]
    return tag("th", *pieces, scope="row", class_="short" if len(name) <= SHORT_ROW else None)


def _after(row: Sequence[str]) -> list[tuple[int, str]]:
    return list(enumerate(row))[1:]


def _side(column: int, numbers_from: int) -> str | None:
    return "n" if column >= numbers_from else None
