"""What a plot can be written as, asked before anything heavy loads."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from rankwise.errors import UsageError, nearest

SUFFIXES = (".png", ".svg")


def check_plot(path: Path) -> None:
    """Raise UsageError for another suffix than .svg and .png, and for PNG where the extra `report` is not installed."""
    if path.suffix not in SUFFIXES:
        raise UsageError(f"{path}: cannot write a plot as {path.suffix!r}; {nearest(path.suffix, SUFFIXES)}")
    if path.suffix == ".png" and find_spec("vl_convert") is None:
        raise UsageError("a PNG needs vl_convert; pip install 'rankwise[report]', or write an SVG")
