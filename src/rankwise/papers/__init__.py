"""Methods: one file each, named by its slug; a user's own come through the entry-point group `rankwise.methods`.

Names are listed without importing anything heavy; a method's file is imported when it is asked for.
"""

from __future__ import annotations

import importlib
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from rankwise.errors import UsageError, nearest

if TYPE_CHECKING:
    from rankwise.learning.recipe import Method

GROUP = "rankwise.methods"


def slugs() -> list[str]:
    """Return the names of all methods: this package's files, then those of installed plug-ins."""
    own = sorted(path.stem.replace("_", "-") for path in Path(__file__).parent.glob("[!_]*.py"))
    return [*own, *sorted(set(_plugins()) - set(own))]


def method(slug: str) -> Method:
    """Return the method called `slug`, or raise UsageError with the nearest name."""
    known = slugs()
    if slug not in known:
        raise UsageError(f"method {slug!r} does not exist; {nearest(slug, known)}")
    plugins = _plugins()
    if slug in plugins:
        return plugins[slug].load()
    return importlib.import_module(f"rankwise.papers.{slug.replace('-', '_')}").METHOD


def _plugins() -> dict[str, metadata.EntryPoint]:
    return {point.name: point for point in metadata.entry_points(group=GROUP)}
