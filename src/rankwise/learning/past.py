"""The past of a run: what it learnt when, the state it ended in, and the way back before its last task."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rankwise.errors import StorageError, UsageError, nearest
from rankwise.learning.evaluate import score
from rankwise.learning.learner import Learner
from rankwise.learning.ledger import Ledger
from rankwise.learning.results import finish
from rankwise.learning.run import Progress


def history(ledger: Ledger) -> list[dict[str, Any]]:
    """Return one record a task learnt, in order, as JSON values.

    Keys: task; steps; scores and validation (a row of R each); time (when the task was scored, UTC); wall_seconds (of
    learning and scoring it, interruptions left out) and snapshot (a folder's name), both None where the snapshot of its
    end is gone; end (offset in bytes of its last event).
    """
    ends, records, steps, before = ledger.task_ends(), [], 0, 0.0
    for event in ledger.read_events():
        if event["event"] == "step":
            steps = event["step"]
        if event["event"] != "task":
            continue
        folder = ends.get(len(records) + 1)
        after = ledger.progress(folder)["seconds"] if folder else None
        took = None if after is None or before is None else round(after - before, 3)
        kept = {key: event[key] for key in ("task", "scores", "validation", "time", "end")}
        records.append({**kept, "steps": steps, "wall_seconds": took, "snapshot": folder.name if folder else None})
        steps, before = 0, after
    return records


def restore_task_end(learner: Learner, ledger: Ledger) -> Progress:
    """Put a fresh learner into the state after the last task learnt (or before the first), and say where it stands."""
    records = history(ledger)
    folder = ledger.task_ends().get(len(records))
    if folder is None and records:
        task = records[-1]["task"]
        remedy = f"`rankwise resume {ledger.path}` learns what was not saved again"
        raise StorageError(f"{ledger.path}: no snapshot of the end of {task!r}; {remedy}")
    if folder is None:
        start = next((event for event in ledger.read_events() if event["event"] == "start"), {"scores": []})
        return Progress(zero_shot=start["scores"])
    tensors, values = ledger.read(folder)
    learner.restore(tensors, values["learner"])
    return Progress(**values["progress"])


def undo(
    learner: Learner, ledger: Ledger, base: Mapping[str, Any], page: Callable[[], object] = lambda: None
) -> dict[str, Any]:
    """Go back to the state before the last task learnt, by its snapshot; return {"undone": task, "results": ...}.

    Events, snapshots, matrix, results and adapter are those of a run that stopped there, bit for bit; a task under way
    goes too. Killed on the way, the next `undo` or `resume` ends what was begun and takes nothing further back. `page`
    writes anew what else is made of these files.

    Raises:
        UsageError: nothing has been learnt yet.
        StorageError: the snapshot to go back to is gone or damaged; nothing was changed.

    """
    ledger.tidy()
    if ledger.undoing() is None:
        ledger.begin_undo(*_before_last(ledger))
    asked = ledger.undoing() or {}
    ledger.cut()
    results = finish(learner, restore_task_end(learner, ledger), ledger, base)
    page()
    ledger.end_undo()
    return {"undone": asked["task"], "results": results}


def _before_last(ledger: Ledger) -> tuple[str, Any, int]:
    """Return the last task's name, the snapshot before it (None: the start) and the offset of the events before it."""
    records = history(ledger)
    if not records:
        raise UsageError(f"{ledger.path}: no task has been learnt yet, so there is none to undo")
    task = records[-1]["task"]
    if len(records) == 1:
        start = next(event["end"] for event in ledger.read_events() if event["event"] == "start")
        return task, None, start
    folder = ledger.task_ends().get(len(records) - 1)
    if folder is None:
        raise StorageError(
            f"{ledger.path}: the snapshot of the end of {records[-2]['task']!r} is gone, so {task!r} cannot be undone"
        )
    _, values = ledger.read(folder)
    return task, folder, int(values["events"])


def scores_now(learner: Learner, ledger: Ledger, task: str | None = None) -> dict[str, Any]:
    """Score the state after the last task learnt on every task of the stream, or on the one named.

    Returns:
        learnt (names, in order), metric, tasks, scores (on test rows) and validation (on validation rows): one value a
        task, None where it cannot be answered yet or has no such rows.

    """
    names = [each.name for each in learner.tasks]
    if task is not None and task not in names:
        raise UsageError(f"task {task!r} is not in this run; {nearest(task, names)}")
    progress = restore_task_end(learner, ledger)
    asked = [each for each in learner.tasks if task in (None, each.name)]
    return {
        "learnt": [each.name for each in learner.curriculum[: progress.task]],
        "metric": learner.objective.metric,
        "tasks": [each.name for each in asked],
        "scores": [score(learner, each, each.test) for each in asked],
        "validation": [None if (v := each.validation) is None else score(learner, each, v) for each in asked],
    }
