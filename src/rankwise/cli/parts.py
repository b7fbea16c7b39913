"""What a config says of parts, files and bases, checked before torch loads: parts by their source, paths by looking."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from rankwise.config import Config, StreamSettings, TaskSettings, parse_record
from rankwise.config.bases import ALIKE, check_name
from rankwise.config.outline import Found, attribute, find, follow, outline, source
from rankwise.config.stream import ENDINGS
from rankwise.errors import UsageError, closest, nearest
from rankwise.papers import own, slugs

RECIPE, INITS, STRATEGIES = "rankwise.learning.recipe", "rankwise.adapters.inits", "rankwise.strategies"
REMOTE = ("hub:", "memory:")
SITES = ("all-linear", "mlp-span")


def check_parts(config: Config, where: str) -> None:
    """Refuse an unknown part, and a key or value that the part does not take; UsageError with the nearest choice.

    Methods that are not of this package are left to themselves: only their own code knows what they take.
    """
    for number, entry in enumerate(config.strategy):
        _check_part(entry, f"{where}: strategy.{number}")
    listed = [entry["kind"] for entry in config.strategy]
    if twice := next((kind for kind in listed if listed.count(kind) > 1), None):
        raise UsageError(f"{where}: strategy: {twice!r} is given twice; give each kind once")
    if config.method in own():
        _check_adapter(config, where)
    start = config.adapter.init
    if start is not None and start not in starts() and not _foreign(start):
        raise UsageError(f"{where}: adapter.init = {start!r}: no such init; {nearest(start, starts())}")


def check_places(config: Config, folder: Path, where: str) -> None:
    """Refuse files, bases and sites that cannot be there; UsageError with the nearest that is.

    Args:
        config: what names them.
        folder: where file names start: the config's own.
        where: the config's name, for messages.

    """
    tables = [("stream", config.stream), *((f"stream.tasks.{i}", t) for i, t in enumerate(config.stream.tasks or ()))]
    for key, name in ((f"{place}.{key}", name) for place, table in tables for key, name in _sources(table)):
        if not name.startswith(REMOTE) and not (folder / name).exists():
            raise UsageError(f"{where}: {key} = {name!r}: no such file or folder; {_beside(folder / name)}")
    check_base(config.model.name, folder, f"{where}: model.name = ")
    sites = [config.adapter.sites] if isinstance(config.adapter.sites, str) else config.adapter.sites
    for word in sites:
        if "-" in word and word not in SITES and closest(word, SITES, alike=ALIKE):
            raise UsageError(f"{where}: adapter.sites: no module is called {word!r}; {nearest(word, SITES)}")


@cache
def kinds() -> Mapping[str, Found]:
    """Return the parts there are by their word in a config: strategies, and the dynamics that methods bring."""
    parts = find(STRATEGIES, "PARTS")
    names = [node.id for node in ast.walk(parts.node) if isinstance(node, ast.Name)] if parts else []
    strategies = [found for name in names if (found := find(STRATEGIES, name)) and isinstance(found.node, ast.ClassDef)]
    named = {str(ast.literal_eval(word.node)): part for part in strategies if (word := attribute(part, "name"))}
    return named | {slug: part for slug in own() if slug not in named and (part := part_of(slug, "dynamics"))}


@cache
def starts() -> list[str]:
    """Return the words for a start that adapter.init takes."""
    common = [*_started(source(INITS))]
    brought = [slug for slug in own() if (node := _written(slug, "init")) and not {*_started(node)} <= {*common}]
    return [*common, *brought]


def part_of(slug: str, seam: str) -> Found | None:
    """Return the class that the method `slug` has at a seam (gate, form, dynamics), or the one every method has."""
    written = _written(slug, seam)
    if isinstance(written, ast.Name | ast.Attribute):
        return follow(_module(slug), written)
    method = find(RECIPE, "Method")
    return attribute(method, seam) if method and seam != "dynamics" else None


def _check_adapter(config: Config, where: str) -> None:
    slug, adapter = config.method, config.adapter
    for seam, values in (("gate", adapter.gate), ("form", adapter.form)):
        if values and (part := part_of(slug, seam)) is not None:
            parse_record(outline(part, besides="Branch"), values, f"{where}: adapter.{seam} of method {slug!r}")
    if adapter.dynamics:
        kind = {"kind": slug} if part_of(slug, "dynamics") else {}
        _check_part({**kind, **adapter.dynamics}, f"{where}: adapter.dynamics")


def _check_part(entry: Mapping[str, Any], where: str) -> None:
    if "kind" not in entry:
        slip = closest("kind", entry)
        met = f"did you mean 'kind' by {slip!r}?" if slip else f"one of {', '.join(sorted(kinds()))}"
        raise UsageError(f"{where}: 'kind' is missing; add kind = ...; {met}")
    kind = entry["kind"]
    if kind not in kinds():
        if _foreign(kind):
            return
        raise UsageError(f"{where}.kind = {kind!r} does not exist; {nearest(str(kind), kinds())}")
    settings = attribute(kinds()[kind], "Settings")
    if settings is not None:
        parse_record(outline(settings), {key: value for key, value in entry.items() if key != "kind"}, where)


def _foreign(slug: object) -> bool:
    """Say whether a method is not of this package."""
    return slug in slugs() and slug not in own()


def _module(slug: str) -> str:
    return f"rankwise.papers.{slug.replace('-', '_')}"


def _written(slug: str, seam: str) -> ast.expr | None:
    """Return what the file of the method `slug` passes for `seam` of its METHOD."""
    method = find(_module(slug), "METHOD")
    words = method.node.keywords if method and isinstance(method.node, ast.Call) else []
    return next((word.value for word in words if word.arg == seam), None)


def _started(tree: ast.AST) -> Iterator[str]:
    """Yield the names of the starts made in `tree`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Init":
            yield str(ast.literal_eval(node.args[0]))


def _sources(table: StreamSettings | TaskSettings) -> Iterator[tuple[str, str]]:
    named: Sequence[tuple[str, str | None]] = (("train", table.train), ("test", table.test))
    return ((key, name) for key, name in named if name is not None)


def _beside(path: Path) -> str:
    """Say what folders and data lie where `path` should."""
    if not path.parent.is_dir():
        return f"the folder {path.parent.name!r} is missing too; paths are relative to the config's folder"
    held = (entry.name for entry in path.parent.iterdir() if entry.is_dir() or entry.suffix.lower() in ENDINGS)
    return nearest(path.name, sorted(held)[:50])


def check_base(name: str, folder: Path, where: str) -> None:
    """Refuse a base that is no folder where it can be nothing else, or that is nearly one that is there.

    `where` comes before the name in the message, such as "--base ".
    """
    path = folder / Path(name).expanduser()
    if path.is_dir() or Path(name).is_dir() or name.startswith("hub:"):
        return
    check_name(name, where)
    local = name.startswith((".", "/", "~")) or name.count("/") > 1 or path.is_file()
    if local or ("/" in name and closest(path.name, [base.name for base in path.parent.glob("*/")])):
        raise UsageError(f"{where}{name!r}: no such folder; {_beside(path)}")
