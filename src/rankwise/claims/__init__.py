"""Published claims in miniature, measured: one file a method (`mora.py`), each with its rows in `CLAIMS`.

A claim is data beside the code that measures it: a statement, what it is read from, named values for a seed, and the
thresholds they must meet. `rankwise claims` measures, judges and writes `CLAIMS.md`. Files are listed without importing
them, so that naming a claim that does not exist costs no torch import.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

from rankwise.errors import UsageError, nearest

if TYPE_CHECKING:
    from rankwise.claims.harness.claim import Claim


def slugs() -> list[str]:
    """Return what there are claims of: this package's files."""
    return sorted(path.stem.replace("_", "-") for path in Path(__file__).parent.glob("[!_]*.py"))


def claims_of(slug: str) -> tuple[Claim, ...]:
    """Return the claims of `slug` in the order of their numbers, or raise UsageError with the nearest name."""
    if slug not in slugs():
        raise UsageError(f"there are no claims of {slug!r}; {nearest(slug, slugs())}")
    return importlib.import_module(f"rankwise.claims.{slug.replace('-', '_')}").CLAIMS
