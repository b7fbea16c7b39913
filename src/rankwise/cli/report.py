"""`rankwise report`: one page of one run, or of several compared."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter as Option

from rankwise.cli.common import Json, check_out, check_runs, print_json
from rankwise.errors import UsageError


def report(
    folders: Annotated[tuple[Path, ...], Option(negative=())],
    /,
    *,
    out: Path | None = None,
    baseline: str | None = None,
    plots: Path | None = None,
    format: Literal["svg", "png"] = "svg",
    json: Json = False,
) -> None:
    """Write a page that shows what a run learnt, or several side by side, and needs nothing but itself.

    Example: rankwise report runs/demo-seed0 --plots figures

    Args:
        folders: Runs, or folders that hold runs (a sweep's, a demo's).
        out: File for the page. Default: report.html in the folder, or in the one that holds all runs.
        baseline: The row that the others are compared with. Default: the first.
        plots: Folder to write every figure to as well, one file each, for papers.
        format: Of these files; png needs the extra `report`.

    """
    from rankwise.reporting.compare import check_baseline
    from rankwise.reporting.formats import check_plot

    check_runs(folders)
    if out is not None and out.is_dir():
        raise UsageError(f"--out {str(out)!r}: is a folder; name a file in it, as in {out / 'report.html'}")
    check_out(plots, "--plots")
    if plots is not None:
        check_plot(plots / f"figure.{format}")
    if baseline is not None:
        check_baseline(folders, baseline)
    from rankwise.reporting import page
    from rankwise.reporting import plots as drawing

    written, notes = page.report(folders, out, baseline)
    files = drawing.write_all(folders, plots, format) if plots else []
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    if json:
        print_json({"page": str(written), "plots": list(map(str, files)), "notes": notes})
        return
    print(f"report: {written} ({written.stat().st_size / 1024:,.0f} KiB)")
    if files:
        print(f"plots: {len(files)} files in {plots}")
