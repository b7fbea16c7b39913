"""Started by a launcher in every process: does the runs listed in a JSON file, one after another, and keeps an audit.

Each job is {"config", "out"} to start a run (with "copy": a directory to copy it to after its fourth step) or
{"resume"} to continue one. Beside the JSON file, `audit-<rank>.json` records which rows each step's micro-batches held
here and every write that this process did below the directories of the runs.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import rankwise
from rankwise.learning import step as steps
from rankwise.learning.run import Watch

AUDIT: dict[str, Any] = {"rows": {}, "writes": [], "threads": None}
WRITES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "shutil.rmtree")


class Copying(Watch):
    """Copies the run's directory after its fourth step."""

    def __init__(self, job: dict[str, Any]) -> None:
        self.job, self.steps = job, 0

    def stepped(self, done: int, loss: float) -> None:
        self.steps += 1
        if self.steps == 4 and "copy" in self.job:
            shutil.copytree(self.job["out"], self.job["copy"])


def note_writes(below: str) -> None:
    """Record every write of this process below a directory."""

    def hook(event: str, args: tuple[Any, ...]) -> None:
        path = os.fspath(args[0]) if args and isinstance(args[0], str | Path) else ""
        if path.startswith(below) and "audit-" not in path:
            writing = event == "open" and (args[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            if writing or event in WRITES:
                AUDIT["writes"].append([event, path])

    sys.addaudithook(hook)


def note_rows(name: str) -> None:
    """Record the rows of every micro-batch from now on under `name`."""
    rows: list[Any] = []
    AUDIT["rows"][name] = rows

    def noted(learner: Any, batch: Any) -> Iterator[Any]:
        for i, part, share in ORIGINAL(learner, batch):
            rows.append([learner.begun, i, part.ids.tolist() if share else []])
            yield i, part, share

    steps.micro_batches = noted


ORIGINAL = steps.micro_batches


def main() -> None:
    """Do the jobs."""
    listed = Path(sys.argv[1])
    note_writes(str(listed.parent))
    for job in json.loads(listed.read_text()):
        if "resume" in job:
            note_rows(job["resume"])
            rankwise.resume(job["resume"])
        else:
            note_rows(job["out"])
            rankwise.run(job["config"], out=job["out"], watch=Copying(job))
    rank = os.environ.get("RANK", "0")
    (listed.parent / f"audit-{rank}.json").write_text(json.dumps(AUDIT))


if __name__ == "__main__":
    main()
