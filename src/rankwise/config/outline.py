"""The settings of a class as its source states them, without importing it: a slip in a config is told before torch
loads.

A settings class is a frozen dataclass. Its fields are read where their types are plain: numbers, text, Literal,
Annotated[..., Field(...)], lists and tuples of these, and names for these. A field of any other type takes any value
here and is checked when the class itself is made. Nothing that is read is executed.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import field, make_dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Union

from pydantic import Field

PACKAGE = Path(__file__).resolve().parents[1]
PLAIN: dict[str, Any] = {"float": float, "int": int, "bool": bool, "str": str}


class Found(NamedTuple):
    """Something a module of this package names: a class, or what is bound to the name."""

    module: str
    node: ast.ClassDef | ast.expr


@cache
def source(module: str) -> ast.Module:
    """Return the tree of `module`, a dotted name within this package."""
    return ast.parse(_file(module).read_text(encoding="utf-8"))


def _file(module: str) -> Path:
    stem = PACKAGE.joinpath(*module.split(".")[1:])
    return stem.with_suffix(".py") if stem.with_suffix(".py").is_file() else stem / "__init__.py"


def follow(module: str, node: ast.expr) -> Found | None:
    """Return what a name in `module`, or a name of a module imported there (`nested.Prefix`), stands for."""
    match node:
        case ast.Name(id=name):
            return find(module, name)
        case ast.Attribute(value=ast.Name(id=room), attr=name):
            inner = next((each for each in _imported(module, room) if _file(each).is_file()), None)
            return None if inner is None else find(inner, name)
    return None


def _imported(module: str, name: str) -> Iterator[str]:
    """Yield what `name` in `module` may be as a module of this package, by the imports there."""
    for node in source(module).body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("rankwise"):
            yield from (f"{node.module}.{alias.name}" for alias in node.names if (alias.asname or alias.name) == name)


def find(module: str, name: str) -> Found | None:
    """Return what `name` is in `module`, followed through imports within this package; None for anything else."""
    for node in source(module).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return Found(module, node)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("rankwise"):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return find(str(node.module), alias.name)
        if (value := _bound(node, name)) is not None:
            return Found(module, value)
    return None


def attribute(owner: Found, name: str) -> Found | None:
    """Return what the class `owner`, or the nearest class above it, binds `name` to, a name being followed."""
    for module, node in _line(owner):
        for item in node.body:
            if (value := _bound(item, name)) is not None:
                return follow(module, value) if isinstance(value, ast.Name | ast.Attribute) else Found(module, value)
    return None


def outline(owner: Found, besides: str = "") -> type:
    """Return a dataclass with the fields of the class `owner`, for `parse_record`; not those of the class `besides`."""
    found: dict[str, Any] = {}
    for module, node in reversed([*_line(owner, besides)]):
        found |= {key: kind_of(module, written) for key, written in _annotated(node)}
    name = owner.node.name if isinstance(owner.node, ast.ClassDef) else "Settings"
    return make_dataclass(name, [(key, kind, field(default=None)) for key, kind in found.items()], frozen=True)


def kind_of(module: str, node: ast.expr) -> Any:
    """Return the type that an annotation in `module` says; Any where it is not one of those that are read."""
    match node:
        case ast.Constant(value=None):
            return None
        case ast.Name(id=name) if name in PLAIN:
            return PLAIN[name]
        case ast.Name() | ast.Attribute():
            found = follow(module, node)
            return Any if found is None or isinstance(found.node, ast.ClassDef) else kind_of(found.module, found.node)
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return Union[kind_of(module, left), kind_of(module, right)]  # noqa: UP007 (made at run time)
        case ast.Subscript(value=ast.Name(id=name), slice=inside):
            return _made(module, name, inside.elts if isinstance(inside, ast.Tuple) else [inside])
    return Any


def _made(module: str, name: str, parts: list[ast.expr]) -> Any:
    """Return Literal, Annotated, list or tuple of `parts`."""
    match name, parts:
        case "Literal", _:
            return Literal[tuple(ast.literal_eval(part) for part in parts)]
        case "Annotated", [kind, ast.Call(keywords=words)]:
            limits = {word.arg: ast.literal_eval(word.value) for word in words if word.arg}
            return Annotated[kind_of(module, kind), Field(**limits)]
        case "list", [kind]:
            return list[kind_of(module, kind)]
        case "tuple", [kind, ast.Constant(value=value)] if value is ...:
            return tuple[kind_of(module, kind), ...]
    return Any


def _line(owner: Found, besides: str = "") -> Iterator[tuple[str, ast.ClassDef]]:
    """Yield the class and those above it in this package, up to `besides`."""
    if not isinstance(owner.node, ast.ClassDef) or owner.node.name == besides:
        return
    yield owner.module, owner.node
    for base in owner.node.bases:
        if (found := follow(owner.module, base)) is not None:
            yield from _line(found, besides)


def _annotated(node: ast.ClassDef) -> Iterator[tuple[str, ast.expr]]:
    for item in node.body:
        if not isinstance(item, ast.AnnAssign) or ast.unparse(item.annotation).startswith("ClassVar"):
            continue
        if isinstance(item.target, ast.Name):
            yield item.target.id, item.annotation


def _bound(node: ast.stmt, name: str) -> ast.expr | None:
    """Return what a statement binds `name` to."""
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    named = any(isinstance(target, ast.Name) and target.id == name for target in targets)
    return node.value if named and isinstance(node, ast.Assign | ast.AnnAssign) else None
