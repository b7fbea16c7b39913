"""What can go wrong, as types a caller can catch; each message names the thing, the value and the remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class RankwiseError(Exception):
    """Base of every error this package raises on purpose. `exit_code` is what the command returns."""

    exit_code = 1


class UsageError(RankwiseError):
    """The request itself is wrong (an unknown key, a name that does not exist); nothing was started."""

    exit_code = 2


class ConflictError(UsageError):
    """Two parts of a recipe cannot work together; the message names both."""


class DataError(RankwiseError):
    """A file or a data set cannot be used as asked; the message names the file and the place in it."""


class StorageError(RankwiseError):
    """A saved folder is truncated, altered, of another version or cannot be written."""


class NonFiniteError(RankwiseError):
    """A loss stopped being finite; the message names the step, the batch and the last good snapshot."""


def nearest(name: str, choices: Iterable[str]) -> str:
    """Say which of `choices` the unknown `name` probably meant, and list them: the tail of an error message.

    >>> nearest("mroa", ["lora", "mora"])
    "did you mean 'mora'? (known: lora, mora)"
    """
    known = sorted(choices)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean '{close[0]}'? " if close else ""
    return f"{hint}(known: {', '.join(known)})"
