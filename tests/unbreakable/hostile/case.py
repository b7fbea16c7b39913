"""What a hostile case is, and what its files say again and again."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CANARY = "rankwise_canary"
"""A module that lies on the path and is named in files; whoever imports it runs code that came with data."""
MARK = "OUTSIDE"
"""The label of what must not be read."""
STALL = "(([a-z_.0-9]+)+)+!"
"""A regular expression that never ends on a module's name."""
WORDS = ("../../outside", "/etc/passwd", "..", "a/../../b", "\0", "a\nb", "\ud800", "%s%n", "x" * 100_000, CANARY)
ODD: tuple[Any, ...] = (None, True, -1, 0, 1.5, 10**30, "", "x", [], {}, [[]], {"a": 1}, 1e308)

Write = Callable[[Path], str]
"""Puts a case into an empty folder and returns the name of what is opened."""
Bytes = Mapping[str, tuple[bytes | str, bool | None]]
"""Name of a case -> what its file holds, and whether it must be refused."""


@dataclass(frozen=True)
class Case:
    """One hostile thing."""

    name: str
    kind: str
    """What opens it: adapter, config, rows, base, run."""
    write: Write
    refused: bool | None = None
    """True: it must be refused; None: it may be read, within the bounds."""
    declared: int = 0
    """Bytes of tensors or pixels that it says it holds."""


class Escape:
    """Unpickled, it runs a command."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {CANARY}",)
