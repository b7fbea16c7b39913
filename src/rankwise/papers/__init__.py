"""Methods: one file (or small folder) each, named by its slug; a user's own come through the entry-point group
`rankwise.methods`, or from a module that the user names (`--import`).

Names are listed without importing anything heavy; a method's file is imported when it is asked for.
"""

from __future__ import annotations

import importlib
import os
import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from rankwise.errors import ConflictError, UsageError, closest, nearest

if TYPE_CHECKING:
    from rankwise.learning.recipe import Method

GROUP = "rankwise.methods"


_added: dict[str, Method] = {}
_modules: list[str] = []


def slugs() -> list[str]:
    """Return the names of all methods: this package's files, then those of plug-ins and modules that the user named."""
    return [*own(), *sorted({*_plugins(), *_added} - set(own()))]


def method(slug: str) -> Method:
    """Return the method called `slug`, or raise UsageError with the nearest name."""
    known = slugs()
    if slug not in known:
        raise UsageError(f"method {slug!r} does not exist; {nearest(slug, known)}")
    if slug in own():
        return importlib.import_module(f"rankwise.papers.{slug.replace('-', '_')}").METHOD
    return _added[slug] if slug in _added else _loaded(_plugins()[slug])


def add(module: str) -> list[str]:
    """Import a module that the user named and make its METHOD (or each of its METHODS) known; return their slugs.

    Looked for where Python looks, and in the current folder. Nothing is ever imported by a name read from a file.

    Raises:
        UsageError: there is no such module, or it holds no method.
        ConflictError: it calls a method as another is called already.

    """
    if module in _modules:
        return [slug for slug, found in _added.items() if found in _methods_of(module)]
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    found = _methods_of(module)
    for taken in sorted({each.slug for each in found} & set(slugs())):
        raise ConflictError(f"module {module!r} holds a method {taken!r}, which there is already; give it another slug")
    _added.update({each.slug: each for each in found})
    _modules.append(module)
    return [each.slug for each in found]


def added() -> list[str]:
    """Return the modules that were added, for a process that must add them too."""
    return list(_modules)


def _loaded(plugin: metadata.EntryPoint) -> Method:
    try:
        return plugin.load()
    except (ImportError, AttributeError) as error:
        package = plugin.dist.name if plugin.dist else "the package that brings it"
        said = f"the entry point {plugin.value!r} of {package} cannot be loaded ({error})"
        raise UsageError(f"method {plugin.name!r}: {said}; repair or uninstall it") from error


def _methods_of(module: str) -> list[Method]:
    try:
        names = vars(importlib.import_module(module))
    except ModuleNotFoundError as error:
        near = closest(module, [file.stem for file in Path().glob("*.py")])
        where = "start from the folder it lies in, or install it" if near is None else f"did you mean {near!r}?"
        raise UsageError(f"module {module!r}: no module named {error.name!r} was found; {where}") from error
    found = names["METHODS"] if "METHODS" in names else [names[key] for key in ("METHOD",) if key in names]
    if not found:
        raise UsageError(
            f"module {module!r} holds no METHOD and no METHODS; bind a rankwise.learning.recipe.Method there"
        )
    return list(found)


def own() -> list[str]:
    """Return the names of this package's methods, by listing its files."""
    files, folders = Path(__file__).parent.glob("[!_]*.py"), Path(__file__).parent.glob("[!_]*/__init__.py")
    return sorted(name.replace("_", "-") for name in [*(p.stem for p in files), *(p.parent.name for p in folders)])


def _plugins() -> dict[str, metadata.EntryPoint]:
    return {point.name: point for point in metadata.entry_points(group=GROUP)}
