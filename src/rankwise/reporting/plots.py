"""Drawings as files, for papers: SVG as it is, PNG through the extra `report`, which needs no browser."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from rankwise.files import write_file
from rankwise.reporting import figures, records
from rankwise.reporting.compare import KEYS, compare, run_folders
from rankwise.reporting.drawing import Drawing
from rankwise.reporting.figures import Figure
from rankwise.reporting.formats import check_plot

PNG_SCALE = 3.0
"""Pixels of a PNG a unit of a drawing."""


def write(drawing: Drawing, path: str | Path) -> None:
    """Write a drawing as the suffix of `path` says, all or nothing.

    Raises:
        UsageError: another suffix than .svg and .png, or PNG and the extra `report` is not installed.
        StorageError: the file cannot be written.

    """
    path = Path(path)
    check_plot(path)
    write_file(path, drawing.file().encode() if path.suffix == ".svg" else png(drawing))


def png(drawing: Drawing) -> bytes:
    """Return a drawing as PNG, by the extra `report`."""
    import vl_convert

    return vl_convert.svg_to_png(drawing.file(), scale=PNG_SCALE)


def write_all(paths: Sequence[Path], folder: Path, kind: str) -> list[Path]:
    """Write every figure of the runs that `paths` name to `folder`, as `kind`: svg or png; return the files.

    Raises: as `page.report` and `write`.
    """
    written = []
    for name, figure in of(paths):
        written.append(folder / f"{name}.{kind}")
        write(figure.draw(), written[-1])
    return written


def of(paths: Sequence[Path]) -> Iterator[tuple[str, Figure]]:
    """Yield the figures of one run, or those that compare several, each with the name of its file."""
    folders = run_folders(paths)
    if len(folders) == 1:
        yield from ((figure.name, figure) for figure in figures.of_run(records.read(folders[0])))
        return
    tables = compare(paths, KEYS)["tables"]
    for i, table in enumerate(tables):
        prefix = f"{i + 1}-" if len(tables) > 1 else ""
        yield from ((f"{prefix}{figure.name}", figure) for figure in figures.of_rows(table, figures.rows_of(table)))
