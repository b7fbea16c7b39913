"""A run as seen from a terminal: a bar while it goes on (lines, where nobody watches), figures when it is done."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from rich import progress as bars
from rich.console import Console

from rankwise.learning.run import Watch
from rankwise.reporting.tables import matrix_table, number, show, summary_table, verdict

SPEAK_SECONDS = 10.0
"""A line at least this often while steps are done, so that a job that is alive is seen to be."""
HOLD_SECONDS = 1.0
"""And no two lines closer than this, however fast the steps."""


@contextmanager
def progress(console: Console | None = None) -> Iterator[Watch]:
    """Give an onlooker that reports on stderr: a bar on a terminal, lines in a pipe or under CI, one process only."""
    console = console or Console(stderr=True)
    if os.environ.get("RANK", "0") != "0":
        yield Watch()
    elif console.is_terminal and not console.is_dumb_terminal and not os.environ.get("CI"):
        bar = Bar(console)
        with bar.display:
            yield bar
    else:
        yield Lines(console.file)


class Bar(Watch):
    """A bar for the task under way: its place in the stream, steps, loss and time left; scores stay above it."""

    def __init__(self, console: Console) -> None:
        self.display = bars.Progress(
            bars.TextColumn("{task.description}", markup=False),
            bars.BarColumn(bar_width=30),
            bars.MofNCompleteColumn(),
            bars.TextColumn("{task.fields[loss]}", style="dim"),
            bars.TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self.line: bars.TaskID | None = None

    def note(self, text: str) -> None:
        """Print a line above the bar."""
        self.display.console.print(text, markup=False, highlight=False)

    def task(self, index: int, count: int, name: str, steps: int, done: int) -> None:
        """Begin a new bar, so that the estimate of time is free of the evaluations between tasks."""
        self._end()
        title = f"task {index + 1}/{count}  {name}"
        self.line = self.display.add_task(title, total=steps, completed=done, loss="")

    def stepped(self, done: int, loss: float) -> None:
        """Move the bar."""
        if self.line is not None:
            self.display.update(self.line, completed=done, loss=f"loss {loss:.3f}")

    def scored(self, name: str, scores: Sequence[float | None]) -> None:
        """Print the scores above the bar."""
        self.note(scores_line(name, scores))

    def _end(self) -> None:
        if self.line is not None:
            self.display.remove_task(self.line)
            self.line = None


class Lines(Watch):
    """A line at each task's start, one for about every tenth of its steps or ten seconds, one for the scores."""

    def __init__(self, file: IO[str], clock: Callable[[], float] = time.monotonic) -> None:
        self.file, self.clock = file, clock
        self.steps = self.first = self.told = 0
        self.began = self.spoke = clock()

    def note(self, text: str) -> None:
        """Print a line."""
        print(text, file=self.file, flush=True)

    def task(self, index: int, count: int, name: str, steps: int, done: int) -> None:
        """Print where the stream stands."""
        self.steps, self.first, self.told = steps, done, done
        self.began = self.spoke = self.clock()
        self.note(f"task {index + 1}/{count}  {name}: {steps} steps{f', from step {done}' if done else ''}")

    def stepped(self, done: int, loss: float) -> None:
        """Print a line if it is time for one."""
        now = self.clock()
        silence, tenth = now - self.spoke, 10 * (done - self.told) >= self.steps
        if silence >= SPEAK_SECONDS or (tenth and silence >= HOLD_SECONDS):
            left = (now - self.began) / max(done - self.first, 1) * (self.steps - done)
            until = f"{done}/{self.steps}" if done <= self.steps else str(done)  # a plan may take more steps
            rest = f"  {duration(left)} left" if done <= self.steps else ""
            self.note(f"  step {until}  loss {loss:.3f}{rest}")
            self.spoke, self.told = now, done

    def scored(self, name: str, scores: Sequence[float | None]) -> None:
        """Print the scores."""
        self.note(scores_line(name, scores))


def scores_line(name: str, scores: Sequence[float | None]) -> str:
    """Write one row of R.

    >>> scores_line("digits-1", [0.987, None])
    '  after digits-1: 0.99 -'
    """
    return f"  after {name}: {' '.join(map(number, scores))}"


def duration(seconds: float) -> str:
    """Write a length of time.

    >>> duration(7.4), duration(75), duration(7265)
    ('7 s', '1 min 15 s', '2 h 1 min')
    """
    whole = round(seconds)
    hours, minutes = whole // 3600, whole // 60 % 60
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {whole % 60} s" if minutes else f"{whole} s"


def show_results(
    results: Mapping[str, Any], path: Path, console: Console | None = None, report: Path | None = None
) -> None:
    """Print a run's matrix, its summary, what it took, where it lies and where its report is."""
    if os.environ.get("RANK", "0") != "0":
        return
    console = console or Console(file=sys.stdout)
    show(matrix_table(results, width=console.width if console.is_terminal else None), console)
    console.print()
    show(summary_table({results["method"]: results}), console)
    took, memory = duration(results["wall_seconds"]), results["peak_memory_bytes"] / 2**20
    lines = (
        verdict(results),
        f"{results['trainable_parameters']:,} trainable parameters, {took}, at most {memory:,.0f} MiB of memory",
        *([f"report: {report}"] if report else []),
        f"run directory: {path}",
    )
    console.print("\n" + "\n".join(lines), markup=False, highlight=False, soft_wrap=True)
