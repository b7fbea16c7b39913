"""The pages of the commands, from the functions behind them."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any

from text import fenced, prose, table

from rankwise.cli import app


def names() -> list[str]:
    """Return the commands in the order of `rankwise --help`."""
    return [name for name in app if not name.startswith("-")]


def page(name: str) -> str:
    """Return the page of one command."""
    text = inspect.getdoc(app[name].default_command) or ""
    text, example = split_example(text.partition("\nArgs:")[0])
    arguments = list(arguments_of(name))
    usage = " ".join(["rankwise", name, *(f"{word}" for word, _, _, _ in arguments if not word.startswith("--"))])
    parts = [f"# rankwise {name}", prose(text), fenced("text", f"{usage} [OPTIONS]")]
    parts += ["## Example", fenced("console", f"$ {example}")] if example else []
    rows = [(f"`{word}`", kind, default, meaning) for word, kind, default, meaning in arguments]
    parts += ["## Arguments and options", table(("name", "value", "default", "meaning"), rows)]
    return "\n\n".join([*parts, AFTER])


AFTER = """Before the command, `--import MODULE` makes methods of yours known: see
[Add a method](../add-a-method.md). Exit codes: 0 done, 1 failed, 2 misused (nothing was started), 130 stopped by hand.
What the commands promise together: [Commands](../commands.md)."""


def split_example(text: str) -> tuple[str, str]:
    r"""Return a docstring without its example, and the example.

    >>> split_example("Do.\n\nExample: rankwise do it")
    ('Do.', 'rankwise do it')
    """
    before, _, after = text.partition("Example:")
    return before.rstrip(), " ".join(after.split())


def arguments_of(name: str) -> Iterator[tuple[str, str, str, str]]:
    """Yield word, kind of value, default and meaning of each argument; positional ones first."""
    collection: Any = app[name].assemble_argument_collection(parse_docstring=True)
    for argument in sorted(collection, key=lambda argument: argument.name.startswith("-")):
        default = argument.field_info.default
        shown = "" if default in (None, False, (), inspect.Parameter.empty) else f"`{default}`"
        help_text = argument.parameter.help or ""
        yield argument.name, kind_of(argument.hint), "required" if argument.required else shown, help_text


def kind_of(hint: Any) -> str:
    """Return what a value is, in a word."""
    words = re.findall(r"tuple|bool|int|float|Path|str", str(getattr(hint, "__name__", hint)) + str(hint))
    kinds = {"bool": "switch", "int": "whole number", "float": "number", "Path": "path", "str": "text"}
    found = next((kinds[word] for word in words if word in kinds), "text")
    return f"{found}, again and again" if "tuple" in words else found
