"""Docstrings and records as Markdown."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from typing import Any

import tomlkit

SECTIONS = {"Args:": "Arguments", "Returns:": "Returns", "Raises:": "Raises", "Yields:": "Yields"}


def prose(docstring: str) -> str:
    r"""Return a docstring as Markdown: formulas as code, examples as Python, arguments as a list.

    >>> print(prose("One.\n\n    y = W x\n\nArgs:\n    a: a thing."))
    One.
    <BLANKLINE>
    ```text
    y = W x
    ```
    <BLANKLINE>
    **Arguments**
    <BLANKLINE>
    - `a`: a thing.
    """
    parts = [part.strip("\n") for part in re.split(r"\n\s*\n", docstring.strip("\n")) if part.strip()]
    return "\n\n".join("\n\n".join(_part(part) for part in group) for group in _joined(parts))


def _joined(parts: Sequence[str]) -> Iterable[list[str]]:
    """Put indented parts that follow each other into one block of code."""
    for indented, group in groupby(parts, lambda part: part.startswith("    ")):
        found = list(group)
        yield ["\n\n".join(found)] if indented else found


def _part(part: str) -> str:
    first = part.splitlines()[0]
    if part.startswith("    "):
        return fenced("text", "\n".join(line[4:] for line in part.splitlines()))
    if first in SECTIONS:
        return f"**{SECTIONS[first]}**\n\n{_entries(part.splitlines()[1:])}"
    if first.startswith(">>>"):
        return fenced("python", part)
    if "\n>>>" in part:
        before, _, after = part.partition("\n>>>")
        return f"{_part(before)}\n\n{_part('>>>' + after)}"
    return plain(part)


def plain(text: str) -> str:
    r"""Return text as it reads: no `<` begins a tag, no `*` begins emphasis, but for what is code.

    >>> plain("a <b> g* `<c*>`")
    'a &lt;b> g\\* `<c*>`'
    """
    return _outside_code(text, lambda piece: re.sub(r"(?<=\S)\*|\*(?=\S)", r"\*", untagged(piece)))


def untagged(text: str) -> str:
    """Return text in which no `<` begins a tag."""
    return re.sub(r"<(?=[A-Za-z/])", "&lt;", text)


def _outside_code(text: str, change: Callable[[str], str]) -> str:
    return "`".join(change(piece) if i % 2 == 0 else piece for i, piece in enumerate(text.split("`")))


def _entries(lines: Sequence[str]) -> str:
    """Return `name: meaning` lines, continued lines deeper in, as a list."""
    text = "\n".join(line[4:] if line.startswith("    ") else line for line in lines)
    entries = re.split(r"\n(?=\S)", text)
    return "\n".join("- " + re.sub(r"^([\w*]+):", r"`\1`:", plain(" ".join(entry.split()))) for entry in entries)


def fenced(language: str, text: str, title: str = "") -> str:
    """Return a block of code."""
    named = f' title="{title}"' if title else ""
    return f"```{language}{named}\n{text}\n```"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table; cells are Markdown of one line."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell(text) for text in line)} |" for line in lines)


def cell(text: str) -> str:
    """Return text that stays within its cell."""
    return _outside_code(" ".join(text.split()), untagged).replace("|", "\\|")


def value(found: Any) -> str:
    """Return a value as TOML writes it, as code; a word for none."""
    return "not set" if found is None else f"`{tomlkit.item(found).as_string()}`"


def linked(text: str) -> str:
    """Turn arXiv numbers into links.

    >>> linked("arXiv 2106.09685 (ICLR 2022)")
    '[arXiv 2106.09685](https://arxiv.org/abs/2106.09685) (ICLR 2022)'
    """
    return re.sub(r"arXiv (\d{4}\.\d{4,5})", r"[arXiv \1](https://arxiv.org/abs/\1)", text)
