"""The values a sweep tries: `key=[...]`, `key=log(low, high, n)`, `key=loguniform(low, high, n)`. Light: no torch."""

from __future__ import annotations

import math
import random
import re
import tomllib
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

from rankwise.errors import UsageError, nearest
from rankwise.seeds import derive

RANGES = ("log", "loguniform")
LARGEST = 1000
"""Values of one key: more is a slip of the hand."""
_CALL = re.compile(r"\s*([A-Za-z_]+)\s*\((.*)\)\s*")


def parse_grid(texts: Sequence[str], seed: int = 0) -> dict[str, list[Any]]:
    """Read `--grid` texts: key -> the values to try, in the order given.

    Args:
        texts: "key=[a, b]" (TOML), "key=log(low, high, n)" (n values, evenly spaced on a log scale, both ends included)
            or "key=loguniform(low, high, n)" (n values drawn log-uniformly). Numbers keep six digits.
        seed: of what is drawn.

    Raises:
        UsageError: a text that is none of these, or a key given twice.

    >>> parse_grid(["train.lr=log(1e-4, 1e-2, 3)", "adapter.rank=[2, 4]"])
    {'train.lr': [0.0001, 0.001, 0.01], 'adapter.rank': [2, 4]}
    """
    grid: dict[str, list[Any]] = {}
    for text in texts:
        key, equals, value = (part.strip() for part in text.partition("="))
        if not equals or not key:
            raise UsageError(
                f"--grid {text!r}: write key=[...] or key=log(low, high, n), as in train.lr=log(1e-4,1e-2,5)"
            )
        if key in grid:
            raise UsageError(f"--grid {text!r}: {key!r} is given twice; write all its values in one list")
        grid[key] = _values(text, key, value, seed)
    return grid


def combinations(grid: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Return every combination of the values, the last key changing fastest; one empty one for an empty grid."""
    return [dict(zip(grid, values, strict=True)) for values in product(*grid.values())]


def _values(text: str, key: str, value: str, seed: int) -> list[Any]:
    if call := _CALL.fullmatch(value):
        return _range(text, key, call[1], call[2], seed)
    try:
        found = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        raise UsageError(f"--grid {text!r}: {value!r} is no TOML list and no log(low, high, n)") from None
    if not isinstance(found, list) or not found:
        raise UsageError(f"--grid {text!r}: give a list of values, as in {key}=[{value.strip('[]') or '1, 2'}]")
    if any(found.count(each) > 1 for each in found):
        raise UsageError(f"--grid {text!r}: a value is given twice; leave one out")
    return found


def _range(text: str, key: str, name: str, inside: str, seed: int) -> list[float]:
    if name not in RANGES:
        raise UsageError(f"--grid {text!r}: {name!r} is no range; {nearest(name, RANGES)}")
    try:
        low, high, count = (float(word) for word in inside.split(","))
    except ValueError:
        raise UsageError(f"--grid {text!r}: {name} takes low, high and how many, as in {name}(1e-4, 1e-2, 5)") from None
    if not 0 < low < high < math.inf or not 2 <= count <= LARGEST or count % 1:
        raise UsageError(f"--grid {text!r}: {name} needs 0 < low < high and a whole number of 2 to {LARGEST} values")
    n, ratio = int(count), math.log(high / low)
    draw = random.Random(derive(seed, "grid", key))
    shares = [i / (n - 1) for i in range(n)] if name == "log" else sorted(draw.random() for _ in range(n))
    return [float(f"{low * math.exp(share * ratio):.6g}") for share in shares]
