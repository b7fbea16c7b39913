"""The names a base may have, told apart before one is loaded. Light: it loads neither torch nor models."""

from __future__ import annotations

from pathlib import Path

from rankwise.errors import UsageError, closest, nearest

MINILM, EMBEDDED, HUB = "minilm", "embedded", "hub"
FOLDER = Path(__file__).resolve().parents[1] / "models" / EMBEDDED
"""Where the bases lie that come with the package, a folder each."""
ALIKE = 0.8
"""How like a word of ours a name of something else must be to be taken for a slip."""


def known() -> list[str]:
    """Return the names of the bases that need no network."""
    return [MINILM, *(f"{EMBEDDED}:{folder.name}" for folder in sorted(FOLDER.glob("[!_]*/")))]


def check_name(name: str, where: str) -> None:
    """Refuse a name that no base has, and one that is nearly that of a base which comes with the package.

    `where` comes before the name in the message, such as "--base ". What is a folder is not to be asked for here.

    Raises:
        UsageError: an unknown prefix or embedded base, or a part or a slip of a known name; it says which was meant.

    """
    prefix, colon, rest = name.partition(":")
    if name in known() or (colon and prefix == HUB):
        return
    if colon and len(prefix) > 1 and "/" not in prefix:  # one letter is a Windows drive
        ours = [*known(), f"{HUB}:{rest}"] if "/" in rest else known()
        raise UsageError(f"{where}{name!r}: no such base; {nearest(name, ours)}")
    meant = _meant(name.lower())
    if "/" not in name and meant is not None:
        raise UsageError(f"{where}{name!r}: no such base; did you mean {meant!r}? (known: {', '.join(known())})")


def _meant(word: str) -> str | None:
    """Return the base that `word`, or the word nearest to it, is a part of: embedded, vit, embedded:vit, minilm."""
    words = {part: name for name in reversed(known()) for part in (*name.split(":"), name)}
    slip = closest(word, words, alike=ALIKE)
    return None if slip is None else words[slip]
