"""The line between two tasks' values, as a table and as a plot."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rankwise.reporting import plots
from rankwise.reporting.tables import Table, number

if TYPE_CHECKING:
    import altair

WIDTH, HEIGHT = 420, 260
"""Pixels of the plot."""


def path_table(measured: Mapping[str, Any]) -> Table:
    """Return what `learning.connectivity.measure` found: a row a point, the best mean score in bold."""
    first, second = measured["tasks"]
    columns = [*(measured["scores"][t] for t in (first, second)), *(measured["losses"][t] for t in (first, second))]
    rows = [
        (f"{alpha:.2f}", *(number(value) for value in values), number(sum(values[:2]) / 2))
        for alpha, *values in zip(measured["alphas"], *columns, strict=True)
    ]
    best = measured["alphas"].index(measured["best"])
    barriers, cka = measured["barriers"], measured["cka"]
    figures = (
        f"barrier {number(barriers[first])} / {number(barriers[second])}, distance {number(measured['distance'])}, "
        f"CKA {number(cka[first])} / {number(cka[second])}"
    )
    metric = measured["metric"]
    header = ("alpha", f"{metric} {first}", f"{metric} {second}", f"loss {first}", f"loss {second}", f"mean {metric}")
    title = f"from after {first} (0) to after {second} (1): {figures}"
    return Table(title, header, tuple(rows), bold=frozenset({(best, 5)}))


def path_chart(measured: Mapping[str, Any]) -> altair.LayerChart:
    """Return the losses and the scores along the line, a colour a task, the score dashed.

    Raises UsageError where the extra `report` is not installed.
    """
    alt = plots.altair_module()
    points = [
        {"alpha": alpha, "task": task, "what": what, "value": value}
        for what, table in (("loss", measured["losses"]), (measured["metric"], measured["scores"]))
        for task in measured["tasks"]
        for alpha, value in zip(measured["alphas"], table[task], strict=True)
    ]
    first, second = measured["tasks"]
    base = alt.Chart(alt.Data(values=points)).encode(
        x=alt.X("alpha:Q", title=f"after {first} (0) to after {second} (1)"),
        y=alt.Y("value:Q", title=f"loss, {measured['metric']}"),
        color=alt.Color("task:N", sort=measured["tasks"], title="on"),
        strokeDash=alt.StrokeDash("what:N", sort=["loss", measured["metric"]], title="value"),
    )
    chart = base.mark_line(strokeWidth=2) + base.mark_point(filled=True, size=36)
    title = {"text": "On the straight line between two tasks", "subtitle": [f"{first} and {second}"]}
    return plots.styled(chart.properties(title=title, width=WIDTH, height=HEIGHT))


def draw(measured: Mapping[str, Any], folder: Path, plot: Path | None) -> Path | None:
    """Write the plot to `plot`, or into `folder` where plots can be drawn; return where, None if not at all."""
    if plot is None and not plots.possible():
        return None
    path = plot or folder / f"path-{'-'.join(measured['tasks'])}.svg"
    plots.write(path_chart(measured), path)
    return path
