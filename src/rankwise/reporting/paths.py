"""The line between two tasks' values, as a table and as a plot."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rankwise.reporting import plots
from rankwise.reporting.drawing import Drawing, Line, axis, line_chart
from rankwise.reporting.tables import Table, number


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


def path_chart(measured: Mapping[str, Any]) -> Drawing:
    """Return the losses and the scores along the line, a line for each on each task."""
    first, second = measured["tasks"]
    kinds = ((f"{measured['metric']} on", measured["scores"]), ("loss on", measured["losses"]))
    named = [(f"{kind} {task}", table[task]) for kind, table in kinds for task in (first, second)]
    lines = [Line(label, list(zip(measured["alphas"], y, strict=True)), i) for i, (label, y) in enumerate(named)]
    x = axis(f"after {first} (0) to after {second} (1)", [], 0.0, 1.0)
    y = axis("", [value for _, values in named for value in values], 0.0)
    ends = "; ".join(f"{label}: {values[0]:.3f} to {values[-1]:.3f}" for label, values in named)
    return line_chart(lines, x, y, f"On the straight line between two tasks. {ends}")


def draw(measured: Mapping[str, Any], folder: Path, plot: Path | None) -> Path:
    """Write the plot to `plot` (.svg or .png), or as SVG into `folder`; return where."""
    path = plot or folder / f"path-{'-'.join(measured['tasks'])}.svg"
    plots.write(path_chart(measured), path)
    return path
