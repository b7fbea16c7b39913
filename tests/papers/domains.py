"""What tests of runs on the toy of domains share: runs in several sittings, and what they leave."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

from safetensors.torch import load_file
from stopping import Stop, Stopping
from torch import Tensor

from rankwise.claims.toys.domains import ORDER, base, learn, learner, stream, task
from rankwise.learning.learner import Learner
from rankwise.learning.ledger import Ledger
from rankwise.learning.run import Progress

__all__ = ["ORDER", "Stop", "Stopping", "base", "in_sittings", "learn", "learner", "stream", "task", "task_ends"]


def in_sittings(make: Callable[[], Learner], out: Path, steps: int) -> tuple[Progress, int]:
    """Learn with a stop after every `steps` steps, each sitting with a learner made afresh; return the sittings too."""
    for sitting in range(1, 200):
        with contextlib.suppress(Stop):
            return learn(make(), out, Stopping(steps)), sitting
    raise AssertionError("the run makes no progress")


def task_ends(out: Path) -> list[dict[str, Tensor]]:
    """Return the tensors of the snapshot at the end of each task."""
    ends = Ledger(out).task_ends()
    return [load_file(str(ends[i] / "state.safetensors")) for i in sorted(ends)]
