"""A run that stops by itself after so many steps."""

from __future__ import annotations

from rankwise.learning.run import Watch


class Stop(Exception):
    """Raised by `Stopping`."""


class Stopping(Watch):
    """Raises `Stop` after so many steps."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def stepped(self, done: int, loss: float) -> None:
        self.steps -= 1
        if not self.steps:
            raise Stop
