"""The text of src/rankwise, read with `ast`: nothing of the package is imported, so no test here waits for torch."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "rankwise"
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Source:
    """One file of the package: its path from the package's folder, its text and its tree."""

    path: str
    text: str
    tree: ast.Module

    def at(self, node: ast.stmt | ast.expr | ast.excepthandler | int, what: str) -> str:
        line = node if isinstance(node, int) else node.lineno
        return f"src/rankwise/{self.path}:{line}: {what}"

    def nodes(self, *kinds: type[ast.AST]) -> Iterator:
        return (node for node in ast.walk(self.tree) if isinstance(node, kinds))

    def functions(self) -> Iterator[Function]:
        return self.nodes(ast.FunctionDef, ast.AsyncFunctionDef)


Check = Callable[[Source], Iterator[str]]
"""A rule: says file, line and breach."""


@cache
def sources() -> tuple[Source, ...]:
    files = sorted(PACKAGE.rglob("*.py"))
    texts = [(path, path.read_text(encoding="utf-8")) for path in files]
    return tuple(Source(path.relative_to(PACKAGE).as_posix(), text, ast.parse(text)) for path, text in texts)


def refuse(breaches: Iterable[str], rule: str) -> None:
    found = list(breaches)
    assert not found, f"{rule}\n" + "\n".join(found)


def everywhere(check: Check, besides: Iterable[str] = ()) -> Iterator[str]:
    for source in sources():
        if source.path not in besides:
            yield from check(source)


def dotted(node: ast.expr) -> str:
    """`a.b.c` for a chain of names, else the empty string."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        before = dotted(node.value)
        return f"{before}.{node.attr}" if before else ""
    return ""


def imported(source: Source) -> Iterator[tuple[ast.stmt, str]]:
    for node in source.nodes(ast.Import):
        yield from ((node, alias.name) for alias in node.names)
    for node in source.nodes(ast.ImportFrom):
        yield from ((node, f"{node.module or ''}.{alias.name}") for alias in node.names)


def sees(check: Check, text: str) -> None:
    """Assert that a rule finds one breach in a text."""
    found = list(check(Source("x.py", text, ast.parse(text))))
    assert len(found) == 1, found
    assert re.match(r"src/rankwise/x\.py:\d+: .", found[0])
