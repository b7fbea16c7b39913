"""Plots of a run, as altair charts written to SVG or PNG (extra `report`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rankwise.errors import UsageError, nearest
from rankwise.reporting.tables import number

if TYPE_CHECKING:
    import altair

CELL = 64
"""Pixels a cell is wide; it is two thirds as high."""
INK, PAPER, MUTED = "#1b2733", "#ffffff", "#66727f"
FONT = "Helvetica, Arial, sans-serif"
DARK_FROM = 0.55
"""Scores from here on lie on cells dark enough for white figures."""
SUFFIXES = (".png", ".svg")
PNG_SCALE = 2.0


def matrix_chart(results: Mapping[str, Any]) -> altair.LayerChart:
    """Return R of a run as a heat map: a row after each task, a column a task, the score in each cell.

    Colours run from 0 to 1 in every chart, so that charts can be compared; cells that were not measured stay blank.
    Raises UsageError where the extra `report` is not installed.
    """
    alt = altair_module()
    cells = list(_cells(results))
    after, tasks = _rows(results), list(results["tasks"])
    base = alt.Chart(alt.Data(values=cells)).encode(
        x=alt.X("task:N", sort=tasks, scale=alt.Scale(domain=tasks), title="score on").axis(
            orient="top", labelAngle=-35 if _long(tasks) else 0
        ),
        y=alt.Y("after:N", sort=after, scale=alt.Scale(domain=after), title="after learning"),
    )
    shade = (
        alt.Color("score:Q", title=results["metric"])
        .scale(scheme="blues", domain=[0, 1])
        .legend(format=".1f", tickCount=5)
    )
    ink = alt.condition(f"datum.score >= {DARK_FROM}", alt.value(PAPER), alt.value(INK))
    chart = base.mark_rect(stroke=PAPER, strokeWidth=2, cornerRadius=4).encode(color=shade) + base.mark_text(
        fontSize=13, font=FONT
    ).encode(text="text:N", color=ink)
    size = {"width": CELL * len(tasks), "height": CELL * 2 // 3 * len(after)}
    return styled(chart.properties(title=_title(results), **size))


def write(chart: altair.LayerChart, path: str | Path) -> None:
    """Write a chart as the suffix of `path` says. Raises UsageError for another suffix than .svg and .png."""
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise UsageError(f"{path}: cannot write a chart as {path.suffix!r}; {nearest(path.suffix, SUFFIXES)}")
    altair_module()
    path.parent.mkdir(parents=True, exist_ok=True)
    chart.save(str(path), scale_factor=PNG_SCALE if path.suffix == ".png" else 1.0)


DRAWS = ("altair", "vl_convert")
"""What plots need: the second draws for the first, which would miss it only when it writes."""


def possible() -> bool:
    """Say whether what plots need is installed."""
    return all(find_spec(name) is not None for name in DRAWS)


def altair_module() -> Any:
    """Return altair. Raises UsageError where the extra `report` is not installed."""
    for name in DRAWS:
        if find_spec(name) is None:
            raise UsageError(f"plots need {name}; pip install 'rankwise[report]'")
    import altair

    return altair


def _cells(results: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    scored = [results["zero_shot"], *results["matrix"]] if _zero_shot(results) else results["matrix"]
    for after, scores in zip(_rows(results), scored, strict=True):
        for task, score in zip(results["tasks"], scores, strict=True):
            if score is not None:
                yield {"after": after, "task": task, "score": score, "text": number(score)}


def _rows(results: Mapping[str, Any]) -> list[str]:
    return [*(["nothing"] if _zero_shot(results) else []), *results["tasks"]]


def _zero_shot(results: Mapping[str, Any]) -> bool:
    return any(score is not None for score in results["zero_shot"])


def _long(names: list[str]) -> bool:
    """Say whether names do not fit side by side over their columns."""
    return 7 * max(len(name) for name in names) > CELL


def _title(results: Mapping[str, Any]) -> dict[str, Any]:
    parts = (("final average", "final_average"), ("forgetting (first - last)", "forgetting_first_minus_last"))
    figures = ",  ".join(f"{name} {number(results[key])}" for name, key in parts)
    return {
        "text": f"{results['method']} on {results['stream']}",
        "subtitle": [f"{results['model']}, seed {results['seed']}", figures],
    }


def styled(chart: altair.LayerChart) -> altair.LayerChart:
    """Return a chart in the house's colours and type."""
    labels: dict[str, Any] = {
        "labelFont": FONT,
        "titleFont": FONT,
        "labelColor": INK,
        "titleColor": MUTED,
        "titleFontWeight": "normal",
    }
    return (
        chart.configure(background=PAPER, padding=18, font=FONT)  # first: it starts the configuration anew
        .configure_view(strokeWidth=0)
        .configure_axis(
            domain=False, ticks=False, grid=False, labelFontSize=12, titleFontSize=12, labelPadding=8, **labels
        )
        .configure_legend(labelFontSize=11, titleFontSize=11, gradientLength=120, gradientThickness=10, **labels)
        .configure_title(anchor="start", fontSize=16, color=INK, subtitleColor=MUTED, subtitleFontSize=12, offset=14)
    )
