"""The command line is light."""

from __future__ import annotations

import os

from fresh import python

HEAVY = ("torch", "transformers", "datasets", "accelerate")


def test_the_command_line_loads_nothing_heavy() -> None:
    done = python("-c", f"import sys, rankwise.cli; print([m for m in {HEAVY!r} if m in sys.modules])")
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stdout + done.stderr


def test_help_answers_at_once() -> None:
    """Seconds of processor time, median of three: on a busy machine the clock on the wall measures the neighbours.

    RANKWISE_HELP_SECONDS sets another bar for a slower machine.
    """
    bar = float(os.environ.get("RANKWISE_HELP_SECONDS", "0.5"))
    times = sorted(processor_seconds("--help") for _ in range(3))
    assert times[1] <= bar, f"rankwise --help took {times[1]:.2f} s of {bar} s (three runs: {times})"


def processor_seconds(*arguments: str) -> float:
    before = os.times()
    done = python("-m", "rankwise", *arguments)
    after = os.times()
    assert done.returncode == 0, done.stderr
    return (after.children_user - before.children_user) + (after.children_system - before.children_system)
