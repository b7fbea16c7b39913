"""What is odd about a stream, though nothing to refuse: one line each, for who reads its scores."""

from __future__ import annotations

from collections.abc import Iterator

from rankwise.streams.base import Stream

MISSING = ("nan", "na", "n/a", "null")
"""Texts (in small letters) that stand for no value in many files of text, though they may be names of classes, too."""


def notes(stream: Stream) -> Iterator[str]:
    """Say which test rows are training rows, too, where there is one class to name, and which may be none."""
    shared = stream.record["overlap"]
    found = [f"{shared[t.name]} of {len(t.test)} test rows of '{t.name}'" for t in stream.tasks if shared[t.name]]
    if found:
        yield f"{', '.join(found)} are training rows, too"
    if stream.kind == "instruction":
        return
    taught = {c for task in stream.tasks for c in task.classes}
    ranked = stream.class_names if stream.candidates == "all" else [stream.class_names[c] for c in taught]
    if len(ranked) == 1:
        yield f"all rows are of one class, '{ranked[0]}', so every score is 1.00 whatever is learnt"
    if unsure := [name for name in stream.class_names if name.lower() in MISSING]:
        yield f"label '{unsure[0]}' counts as a class of its own; if its rows have no label, remove them"
