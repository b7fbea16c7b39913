"""A run that stops by itself after so many steps, and goes on until it is done."""

from __future__ import annotations

from pathlib import Path

import rankwise
from rankwise.learning.run import Watch


class Stop(Exception):
    """Raised by `Stopping`."""


class Stopping(Watch):
    """Raises an error after so many steps; keeps the notes."""

    def __init__(self, steps: int, error: type[BaseException] = Stop) -> None:
        self.steps, self.error, self.notes = steps, error, list[str]()

    def note(self, text: str) -> None:
        self.notes.append(text)

    def stepped(self, done: int, loss: float) -> None:
        self.steps -= 1
        if not self.steps:
            raise self.error


def finish(out: Path, steps: int = 2) -> int:
    """Resume a run with a stop at every `steps`-th step until it is done; return the sittings that took."""
    for sitting in range(1, 100):
        try:
            rankwise.resume(out, watch=Stopping(steps))
            return sitting
        except Stop:
            pass
    raise AssertionError("the run makes no progress")
