"""Charts as SVG, written by hand: one drawing serves the page, in the reader's colours, and a paper, in fixed ones.

Colours are CSS variables (`COLOURS`); lines differ in colour and in dashes, points in colour and in shape.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from rankwise.reporting.markup import Markup, joined, tag

COLOURS = {
    "ink": ("#17212b", "#e8edf2"),
    "muted": ("#55626e", "#a9b5c1"),
    "paper": ("#ffffff", "#12171d"),
    "grid": ("#d5dce3", "#36414c"),
    "heat": ("#6aa9e9", "#1f62ab"),
    "cell": ("#f2f6fb", "#171f28"),
    "s0": ("#0b5cad", "#7db7f5"),
    "s1": ("#b3430b", "#f2a76b"),
    "s2": ("#1b7a43", "#7fd6a0"),
    "s3": ("#7b3fb5", "#c9a3f0"),
    "s4": ("#a0186b", "#f08cc4"),
    "s5": ("#55626e", "#b6c0cc"),
    "s6": ("#0f7173", "#6fd0d2"),
    "s7": ("#7d5a00", "#dcb95c"),
}
"""Variable -> (on a light page and in files, on a dark page). Ink on any heat has a contrast above 4.5."""
DASHES = ("", "7 3", "2 3", "9 3 2 3", "14 4", "4 5", "9 3 2 3 2 3", "1 5")
SERIES = len(DASHES)
"""Lines or kinds of points that a chart can tell apart."""
STYLE = "".join(
    [
        ".chart text{font:12px system-ui,'DejaVu Sans',Helvetica,Arial,sans-serif;fill:var(--ink)}",
        ".chart .quiet{fill:var(--muted)}.chart .end{text-anchor:end}.chart .middle{text-anchor:middle}",
        ".chart .grid{stroke:var(--grid);stroke-width:1;fill:none}",
        ".chart .line{fill:none;stroke-width:2;stroke-linejoin:round}",
        *(f".chart .line.s{i}{{stroke:var(--s{i});stroke-dasharray:{d or 'none'}}}" for i, d in enumerate(DASHES)),
        *(f".chart .point.s{i}{{fill:var(--s{i});stroke:var(--paper)}}" for i in range(SERIES)),
        *(f".chart .reach.s{i}{{stroke:var(--s{i});stroke-width:1.5}}" for i in range(SERIES)),
    ]
)
WIDTH, HEIGHT = 360, 220
"""Units of a chart: as wide as a telephone, so that its text is never small."""
MARGIN = 8
"""Units around a chart in a file of its own."""
LETTER = 6.6
"""Units that a letter of the charts takes."""


@dataclass(frozen=True)
class Drawing:
    """A chart and what a reader who does not see it is told."""

    width: float
    height: float
    body: Markup
    label: str

    def inline(self) -> Markup:
        """Return the chart as a part of a page, which holds STYLE and the colours."""
        box = f"0 0 {self.width:.0f} {self.height:.0f}"
        about = {"class_": "chart", "role": "img", "aria_label": self.label, "viewBox": box}
        return tag("svg", self.body, width=f"{self.width:.0f}", height=f"{self.height:.0f}", **about)

    def file(self) -> str:
        """Return the chart as a file of its own, in the colours of paper and with a margin."""
        style = re.sub(r"var\(--(\w+)\)", lambda found: COLOURS[found[1]][0], STYLE)
        fill = tag("rect", width="100%", height="100%", fill=COLOURS["paper"][0])
        body = tag("g", self.body, transform=f"translate({MARGIN} {MARGIN})")
        size = self.width + 2 * MARGIN, self.height + 2 * MARGIN
        whole = Drawing(*size, joined(tag("style", Markup(style)), fill, body), self.label)
        text = re.sub(r"var\(--(\w+)\)", lambda found: COLOURS[found[1]][0], whole.inline())
        return text.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)


@dataclass(frozen=True)
class Line:
    """A named row of points; a gap where y is None."""

    label: str
    points: Sequence[tuple[float, float | None]]
    series: int
    """Which of the colours and dashes it has: the same run has the same in every chart."""

    @property
    def ends(self) -> list[tuple[float, float]]:
        """Return the points that no line leads through: known, between gaps."""
        known = [i for i, (_, y) in enumerate(self.points) if y is not None]
        alone = [i for i in known if i - 1 not in known and i + 1 not in known]
        return [(x, y) for x, y in (self.points[i] for i in alone) if y is not None]


@dataclass(frozen=True)
class Axis:
    """One direction of a chart, from `low` to `high`, drawn from pixel `start` to `end`."""

    title: str
    ticks: tuple[tuple[float, str], ...]
    low: float
    high: float

    def at(self, start: float, end: float) -> Callable[[float], float]:
        """Return the function from values to pixels."""
        return lambda value: start + (value - self.low) / (self.high - self.low) * (end - start)


def axis(title: str, values: Sequence[float], low: float | None = None, high: float | None = None) -> Axis:
    """Return an axis over `values` that ends at round numbers; `low` and `high` fix its ends."""
    least = min(values, default=0.0) if low is None else low
    most = max(values, default=1.0) if high is None else high
    step = _round_step((most - least) / 4 or 0.25)
    first, last = math.floor(least / step + 1e-9), max(math.ceil(most / step - 1e-9), 1 + math.floor(least / step))
    digits = next(d for d in range(16) if math.isclose(round(step, d), step, rel_tol=1e-6) or d == 15)
    ticks = tuple((i * step, f"{i * step:,.{digits}f}") for i in range(first, last + 1))
    return Axis(title, ticks, first * step, last * step)


def counted(title: str, names: Sequence[str], most: int = 8) -> Axis:
    """Return an axis with a place for each of `names`, numbered from 1, every few of them marked."""
    every = math.ceil(len(names) / most)
    ticks = tuple((float(i), str(i)) for i in range(1, len(names) + 1) if (i - 1) % every == 0)
    return Axis(title, ticks, 1.0, float(max(len(names), 2)))


def _round_step(step: float) -> float:
    """Return the smallest of 1, 2, 2.5, 5 times a power of ten that is not below `step`.

    >>> _round_step(0.13), _round_step(30)
    (0.2, 50.0)
    """
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= step * (1 - 1e-9))


def line_chart(lines: Sequence[Line], x: Axis, y: Axis, label: str, cuts: Sequence[float] = ()) -> Drawing:
    """Return lines over x, a legend above them where there are several; `cuts` are places of x marked by a rule."""
    names, top = _legend([(line.label, "line", line.series) for line in lines] if len(lines) > 1 else [])
    box = _Box.of(x, y, top)
    rules = [_path("grid", f"M{box.x(cut):.1f} {box.top:.1f}V{box.bottom:.1f}") for cut in cuts]
    drawn = [_path(f"line s{line.series}", _trace(line.points, box.x, box.y)) for line in lines]
    dots = [_mark(line.series, box.x(x), box.y(y)) for line in lines for x, y in line.ends]
    return Drawing(WIDTH, box.height, joined(names, box.frame(), *rules, *drawn, *dots), label)


@dataclass(frozen=True)
class Point:
    """A named place in a chart of points, with the ends of its intervals where they are known."""

    label: str
    series: int
    x: float
    y: float
    x_ends: tuple[float, float] | None = None
    y_ends: tuple[float, float] | None = None


def point_chart(points: Sequence[Point], x: Axis, y: Axis, label: str) -> Drawing:
    """Return named points with their intervals as whiskers, and the names in a legend above."""
    names, top = _legend([(point.label, "point", point.series) for point in points])
    box = _Box.of(x, y, top)
    drawn = [piece for point in points for piece in _point(point, box)]
    return Drawing(WIDTH, box.height, joined(names, box.frame(), *drawn), label)


def _point(point: Point, box: _Box) -> Iterator[Markup]:
    x, y, reach = box.x(point.x), box.y(point.y), f"reach s{point.series}"
    if point.x_ends is not None:
        yield _path(reach, f"M{box.x(point.x_ends[0]):.1f} {y:.1f}H{box.x(point.x_ends[1]):.1f}")
    if point.y_ends is not None:
        yield _path(reach, f"M{x:.1f} {box.y(point.y_ends[0]):.1f}V{box.y(point.y_ends[1]):.1f}")
    yield _mark(point.series, x, y, tag("title", point.label))


SHAPES = (
    "M-5 0a5 5 0 1 0 10 0a5 5 0 1 0 -10 0Z",
    "M-4.5 -4.5H4.5V4.5H-4.5Z",
    "M0 -6L5.5 4.5H-5.5Z",
    "M0 -6.5L6.5 0L0 6.5L-6.5 0Z",
    "M0 6L5.5 -4.5H-5.5Z",
    "M-6 -2H-2V-6H2V-2H6V2H2V6H-2V2H-6Z",
    "M-6 -3.5H6V3.5H-6Z",
    "M-3.5 -6H3.5V6H-3.5Z",
)
"""Paths around the origin: a circle, a square, a triangle, a diamond, a triangle upside down, a cross, bars."""


def _mark(series: int, x: float, y: float, *inside: Markup) -> Markup:
    place = f"translate({x:.1f} {y:.1f})"
    return tag("path", *inside, class_=f"point s{series}", d=SHAPES[series], transform=place)


def small_chart(title: str, lines: Sequence[Line], x: Axis, y: Axis, label: str) -> Drawing:
    """Return one of many panels: lines between plain rules, a title, and the ends of y; points where they are few."""
    width, height, left, top = 168.0, 92.0, 34.0, 20.0
    at_x, at_y = x.at(left, width - 6), y.at(height - 6, top)
    rules = [_path("grid", f"M{left} {at_y(value):.1f}H{width - 6}") for value in (y.low, y.high)]
    names = [_text(left - 4, at_y(value) + 4, f"{value:g}", "quiet end") for value in (y.low, y.high)]
    drawn = [_path(f"line s{line.series}", _trace(line.points, at_x, at_y)) for line in lines]
    ends = [
        _mark(line.series, at_x(last[0]), at_y(last[1]))
        for line in lines
        if (last := next(((a, b) for a, b in reversed(line.points) if b is not None), None)) is not None
    ]
    heading = _text(left, 12, shortened(title, int((width - left) / LETTER)))
    return Drawing(width, height, joined(heading, *rules, *names, *drawn, *ends), label)


def grid_of(drawings: Sequence[Drawing], columns: int, label: str, names: Sequence[str] = ()) -> Drawing:
    """Return panels of one size side by side, `columns` in a row, under a legend, as one chart."""
    told, top = _legend([(name, "line", i) for i, name in enumerate(names)] if len(names) > 1 else [])
    width, height = drawings[0].width, drawings[0].height
    placed = [
        tag("g", each.body, transform=f"translate({i % columns * width:.0f} {top + i // columns * height:.0f})")
        for i, each in enumerate(drawings)
    ]
    rows = math.ceil(len(drawings) / columns)
    wide = max(width * min(columns, len(drawings)), WIDTH if told else 0)
    return Drawing(wide, top + rows * height + 6, joined(told, *placed), label)


def heat_map(
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[float | None]],
    label: str,
    most: Sequence[float] = (1.0,),
    form: str = ".2f",
) -> Drawing:
    """Return numbers on shaded cells, from 0 to `most` (one number, or one a column); what is not known stays blank."""
    longest = LETTER * max(map(len, columns), default=0)
    wide, high, left = min(max(52.0, longest + 12), 100.0), 30.0, 16 + LETTER * max(map(len, rows), default=0)
    slant = longest + 12 > wide
    top = 16 + (0.6 * longest if slant else 12)
    heads = [_head(left + (j + 0.5) * wide, top - 6, name, slant) for j, name in enumerate(columns)]
    names = [_text(left - 8, top + (i + 0.5) * high + 4, name, "end") for i, name in enumerate(rows)]
    cells = [
        _cell(left + j * wide, top + i * high, wide, high, f"{value:{form}}", shade(value, most[j % len(most)]))
        for i, row in enumerate(values)
        for j, value in enumerate(row)
        if value is not None
    ]
    over = max(0.0, 0.8 * LETTER * len(columns[-1]) - wide / 2) if slant else 0.0
    size = left + len(columns) * wide + over + 12, top + len(rows) * high + 12
    return Drawing(*size, joined(*heads, *names, *cells), label)


def shade(value: float, most: float) -> float:
    """Return how dark a cell is, 0 to 1: the square of its share of `most`, so that 0.9 and 1 can be told apart.

    >>> shade(0.5, 1.0), shade(3.0, 2.0), shade(-1.0, 1.0), shade(0.0, 0.0)
    (0.25, 1.0, 0.0, 0.0)
    """
    return min(max(value / most, 0.0), 1.0) ** 2 if most else 0.0


def _cell(x: float, y: float, width: float, height: float, text: str, dark: float) -> Markup:
    whole = {"x": f"{x + 1:.1f}", "y": f"{y + 1:.1f}", "width": f"{width - 2:.1f}", "height": f"{height - 2:.1f}"}
    ground = tag("rect", rx=3, fill="var(--cell)", **whole)
    over = tag("rect", rx=3, fill="var(--heat)", fill_opacity=f"{dark:.2f}", **whole)
    return joined(ground, over, _text(x + width / 2, y + height / 2 + 4, text, "middle"))


def _head(x: float, y: float, name: str, slant: bool) -> Markup:
    return _text(x, y, name, "", f"rotate(-37 {x:.1f} {y:.1f})") if slant else _text(x, y, name, "middle")


@dataclass(frozen=True)
class _Box:
    """The plot inside a chart: its axes and edges."""

    across: Axis
    up: Axis
    left: float
    top: float
    bottom: float
    height: float

    @classmethod
    def of(cls, across: Axis, up: Axis, top: float) -> _Box:
        left = 12 + LETTER * max(len(name) for _, name in up.ticks)
        head = top + 20 if up.title else top + 8
        return cls(across, up, left, head, head + HEIGHT - 70, head + HEIGHT - 70 + (42 if across.title else 24))

    @property
    def x(self) -> Callable[[float], float]:
        return self.across.at(self.left, WIDTH - 14)

    @property
    def y(self) -> Callable[[float], float]:
        return self.up.at(self.bottom, self.top)

    def frame(self) -> Markup:
        """Return the grid, the numbers at it and the titles."""
        rules = [_path("grid", f"M{self.left:.1f} {self.y(v):.1f}H{WIDTH - 14}") for v, _ in self.up.ticks]
        side = [_text(self.left - 6, self.y(v) + 4, name, "quiet end") for v, name in self.up.ticks]
        below = [_text(self.x(v), self.bottom + 16, name, "quiet middle") for v, name in self.across.ticks]
        middle = (self.left + WIDTH - 14) / 2
        titles = (_text(2, self.top - 10, self.up.title), _text(middle, self.bottom + 34, self.across.title, "middle"))
        return joined(*rules, *side, *below, *titles)


def legend(labels: Sequence[str]) -> Drawing:
    """Return the legend of lines alone."""
    body, height = _legend([(label, "line", i) for i, label in enumerate(labels)])
    return Drawing(WIDTH, height + 4, body, f"lines: {', '.join(labels)}")


def _legend(entries: Sequence[tuple[str, str, int]]) -> tuple[Markup, float]:
    """Return a sample and a name for each entry (name, line or point, series), in rows, and their height."""
    x, y, pieces = 2.0, 14.0, []
    for name, kind, series in entries:
        text = shortened(name, int((WIDTH - 40) / LETTER))
        width = 46 + LETTER * len(text)
        if x > 2 and x + width > WIDTH:
            x, y = 2.0, y + 18
        sample = _mark(series, x + 12, y - 4) if kind == "point" else _path(f"line s{series}", f"M{x} {y - 4}h26")
        pieces += [sample, _text(x + 31, y, text)]
        x += width
    return joined(*pieces), y + 10 if entries else 0.0


def _trace(
    points: Sequence[tuple[float, float | None]], x: Callable[[float], float], y: Callable[[float], float]
) -> str:
    """Return the path through `points`, begun anew after each gap."""
    moves, pen = [], "M"
    for a, b in points:
        if b is not None:
            moves.append(f"{pen}{x(a):.1f} {y(b):.1f}")
        pen = "L" if b is not None else "M"
    return "".join(moves)


def _path(classes: str, d: str) -> Markup:
    return tag("path", class_=classes, d=d)


def _text(x: float, y: float, text: str, classes: str = "", transform: str | None = None) -> Markup:
    return tag("text", text, x=f"{x:.1f}", y=f"{y:.1f}", class_=classes or None, transform=transform)


def shortened(text: str, most: int) -> str:
    """Cut `text` to `most` characters, in the middle, where names differ least.

    >>> shortened("task-of-many-words", 9)
    'task…ords'
    """
    half = (most - 1) // 2
    return text if len(text) <= most else f"{text[: most - 1 - half]}…{text[-half:]}"
