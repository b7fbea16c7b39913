"""The pages of the config, the strategies and the Python interface, from the schema and the docstrings."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator

from methods import setting_table
from text import fenced, plain, prose

import rankwise
from rankwise.config import Config
from rankwise.describe import Group, describe, part_group
from rankwise.learning.foreign import learning
from rankwise.strategies import STRATEGIES

LINE = 80
"""Characters of a signature that stays on one line."""


def config_page() -> str:
    """Return every table of a config with its keys, defaults, choices and meanings."""
    groups = [group for group in describe(Config().method).groups if not group.key.startswith("strategy")]
    shared = [group for group in groups if not group.key.startswith("adapter.")]
    return "\n\n".join([CONFIG, *(part for group in shared for part in _table(group))])


CONFIG = """# Config

A run is described by one TOML file. Unknown or ill-typed keys are refused with file, key and the nearest valid name,
before anything is loaded. `rankwise show METHOD` prints a complete config of a method; `rankwise schema` the JSON
Schema, for editors that complete and check TOML. Any key can be set from the command line: `--set train.lr=0.003`.

What goes under `[adapter.gate]`, `[adapter.form]` and `[adapter.dynamics]` depends on the method: see its page under
[Methods](methods/index.md). What goes under `[[strategy]]`: see [Strategies](strategies.md). Defaults below are the
common ones; a method may have others, under the user's values and over these."""


def _table(group: Group) -> Iterator[str]:
    name = f"[[{group.key}]]" if group.repeats else f"[{group.key}]" if group.key else "At the top"
    yield f"## {name}" if not group.key else f"## `{name}`"
    if group.doc:
        yield plain(group.doc)
    yield setting_table(group)


def strategies_page() -> str:
    """Return every strategy with its rule and its settings."""
    return "\n\n".join([STRATEGIES_HEAD, *(part for name in STRATEGIES for part in _strategy(name))])


STRATEGIES_HEAD = """# Strategies

What protects the past, beside any method: each is an entry `[[strategy]]` of a config, or a name given to
`rankwise.learning` on a loop of your own. They act in the order of their names, whatever the order in the config. Which
go with which method: [What goes with what](composition.md)."""


def _strategy(name: str) -> Iterator[str]:
    part = STRATEGIES[name]
    module = inspect.getmodule(part)
    yield f"## {name}"
    yield prose(inspect.getdoc(module) or "") if module else ""
    yield prose(inspect.getdoc(part) or "")
    yield setting_table(part_group("strategy[]", {"kind": name, **_defaults(part.Settings)}))


def _defaults(kind: type) -> dict[str, object]:
    return dict(vars(kind()))


def python_page() -> str:
    """Return the public functions and classes with their signatures and docstrings."""
    names = [name for name in rankwise.__all__ if not name.startswith("_")]
    order = ["run", "resume", "log", "evaluate", "undo", "adapt", "save", "load", "merge", "export", "learning"]
    names.sort(key=lambda name: order.index(name) if name in order else len(order))
    return "\n\n".join([PYTHON, *(part for name in names for part in _public(name))])


PYTHON = """# Python

The verbs of the command line, from Python; each name is importable from `rankwise` and loaded when it is first used."""


def _public(name: str) -> Iterator[str]:
    found = learning if name == "learning" else getattr(rankwise, name)
    yield f"## rankwise.{name}"
    if inspect.isfunction(found):
        yield fenced("python", f"{name}{_signature(found)}")
    yield prose(inspect.getdoc(found) or "")


def _signature(found: Callable[..., object]) -> str:
    """Return arguments with their types and defaults, on one line where there is room."""
    signature = inspect.signature(found)
    parts = []
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and "*" not in parts:
            parts.append("*")
        name = f"**{parameter.name}" if parameter.kind is parameter.VAR_KEYWORD else parameter.name
        default = "" if parameter.default is parameter.empty else f" = {parameter.default!r}"
        parts.append(f"{name}: {parameter.annotation}{default}")
    line = ", ".join(parts)
    inside = line if len(line) < LINE else "\n    " + ",\n    ".join(parts) + ",\n"
    return f"({inside}) -> {signature.return_annotation}"
