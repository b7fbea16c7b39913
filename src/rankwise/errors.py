"""What can go wrong, as types a caller can catch; each message names the thing, the value and the remedy."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

SECRET = re.compile(
    r"(?P<user>[A-Za-z][A-Za-z0-9+.-]*:/{1,2}[^/\s@'\"]+@)"  # user:password@ in a URL, as it is and as a path has it
    r"|\b(?:hf|api_org|gh[pousr]|github_pat|npm)_[A-Za-z0-9]{16}[A-Za-z0-9_]*|\b(?:glpat|pypi)-[A-Za-z0-9_-]{16,}"
    r"|\b(?:sk|pk|rk)[-_](?:[a-z]+[-_]){0,2}(?=[A-Za-z]*\d)[A-Za-z0-9]{16}[A-Za-z0-9_-]*|\bxox[abeprs]-[A-Za-z0-9-]{16,}"
    r"|\b(?:AKIA|ASIA)[0-9A-Z]{16}\b|\bAIza[A-Za-z0-9_-]{30,}"
    r"|\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*"
    r"|(?<=[?&;])(?i:[a-z_-]*(?:token|secret|password|key|signature|sig))=[^\s&;'\"]+"
)
"""Forms of access tokens and passwords: of hubs, code hosts and clouds, JSON web tokens, and in URLs."""


def masked(text: str) -> str:
    """Return `text` with each token or password that has a known form left out.

    >>> masked("no such base https://me:pass@host/x")
    'no such base https://***@host/x'
    """
    return SECRET.sub(lambda found: found[0].partition(":/")[0] + "://***@" if found["user"] else "***", text)


class RankwiseError(Exception):
    """Base of every error this package raises on purpose. `exit_code` is what the command returns.

    Tokens and passwords are left out of the message, wherever they came from.
    """

    exit_code = 1

    def __init__(self, message: str = "") -> None:
        """Keep the message, masked."""
        super().__init__(masked(message))


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
    close = closest(name, known)
    hint = "" if close is None else f"did you mean '{close}'? "
    return f"{hint}(known: {', '.join(known)})" if known else "there are none"


def closest(name: str, choices: Iterable[str], *, alike: float = 0.5) -> str | None:
    """Return the choice most like `name`, or None if none is at least `alike` (0: nothing in common, 1: the same).

    Capital letters are taken for small ones.

    >>> closest("mroa", ["lora", "mora"]), closest("LoRA", ["lora", "mora"])
    ('mora', 'lora')
    """
    word, small = name.lower(), {choice.lower(): choice for choice in sorted(choices)}
    found = difflib.get_close_matches(word, small, cutoff=alike)  # the most alike first
    best = min(found, key=lambda choice: sorted(choice) != sorted(word), default=None)  # letters are swapped most often
    return None if best is None else small[best]
