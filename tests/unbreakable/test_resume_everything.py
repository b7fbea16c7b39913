"""Every method, stopped at drawn instants, ends in the bits of the run that was not: weights, moments, memories,
events, scores.

An instant is a forward of a micro-batch, a forward of an evaluation (or of a pass over a task's rows), an event about
to be written, a snapshot about to be written or just written; runs are stopped twice in a row. Each draws (dropout,
replay, views of its pictures), cuts its steps into micro-batches, crosses the edge of an epoch, and has its batches
prepared by two threads or by none. Kills while a file is being written: `test_crash_matrix.py`; stops after each step:
`tests/learning/`.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from loading import benchmark

from rankwise import papers
from rankwise.config import merged
from rankwise.learning import run as running
from rankwise.learning.run import Watch
from rankwise.models import Backbone

composition = benchmark("composition")
"""Runs every method in memory."""
METHODS = papers.slugs()
TRAIN = {"steps": 3, "batch_size": 6, "schedule": "linear", "warmup": 0.4, "augment": ["crop", "flip"]}
DRAWS = {"strategy": [{"kind": "replay", "size": 8, "batch_size": 3}]}
"""Laid over the plain methods, so that there is a memory too."""
PLAIN = ("lora", "mora", "dora", "finetune")


class Stopped(BaseException):
    """Nothing may catch this."""


class Instants:
    """Counts the instants of a run, by kind, and ends it at one of them."""

    def __init__(self, at: int = 0) -> None:
        self.at, self.kinds = at, []

    def tick(self, kind: str) -> None:
        self.kinds.append(kind)
        if len(self.kinds) == self.at:
            raise Stopped

    def ticking(self, patch: pytest.MonkeyPatch, ledger: Any) -> None:
        states, record, snapshot = Backbone.states, type(ledger).record, type(ledger).snapshot

        def forward(backbone: Backbone, *args: Any, **kwargs: Any) -> Any:
            self.tick("micro-batch" if backbone.module.training else "evaluation")
            return states(backbone, *args, **kwargs)

        def recorded(memory: Any, *args: Any, **kwargs: Any) -> None:
            self.tick("event")
            record(memory, *args, **kwargs)

        def saved(memory: Any, *args: Any, **kwargs: Any) -> None:
            self.tick("before a snapshot")
            snapshot(memory, *args, **kwargs)
            self.tick("after a snapshot")

        patch.setattr(Backbone, "states", forward)
        patch.setattr(type(ledger), "record", recorded)
        patch.setattr(type(ledger), "snapshot", saved)


class Cell:
    """A run of one method, as the benchmark takes it."""

    def __init__(self, method: str, workers: int) -> None:
        plain, made = composition.Cell(method, ()).config, papers.method(method)
        cut = 1 if made.form.whole_batch else 2  # a loss over the whole batch refuses to be cut
        over = {
            "train": {**TRAIN, "workers": workers, "accumulate": cut},
            "adapter": {"dropout": 0.1} if made.live == "adapter" else {},
        }
        self.config = merged(plain, {**over, **(DRAWS if method in PLAIN else {})})


def played(cell: Cell, ledger: Any, instants: Instants) -> dict[str, Any] | None:
    """Run a cell, or what is left of it; return what it left, None if it was stopped."""
    with pytest.MonkeyPatch.context() as patch:
        learner = composition.learner_of(cell)
        instants.ticking(patch, ledger)
        try:
            progress = running.run(learner, ledger, Watch())
        except Stopped:
            return None
    events, tensors = ledger.left()
    return {**asdict(progress), "seconds": 0.0, "events": events, "tensors": tensors}


def stops(kinds: list[str], method: str, count: int) -> Iterator[tuple[int, int]]:
    """Draw pairs of instants, the first of a kind in turn: (first, how many later the second)."""
    draw, names = random.Random(method), sorted(set(kinds))
    for i in range(count):
        kind = names[(METHODS.index(method) + i) % len(names)]
        yield draw.choice([k for k, each in enumerate(kinds, 1) if each == kind]), draw.randint(1, len(kinds))


def compare(method: str, workers: int, count: int, folder: Path) -> None:
    memory = partial(composition.Memory, folder)
    cell, whole = Cell(method, workers), Instants()
    wanted = played(cell, memory(), whole)
    assert wanted is not None
    for first, second in stops(whole.kinds, method, count):
        ledger, at = memory(), Instants(first)
        assert played(cell, ledger, at) is None
        left = played(cell, ledger, Instants(second)) or played(cell, ledger, Instants())
        where = f"stopped at {first} ({at.kinds[-1]}), then {second} later"
        assert left is not None
        assert [key for key in wanted if left[key] != wanted[key]] == [], where


@pytest.mark.parametrize("method", METHODS)
def test_stopped_twice_at_drawn_instants(method, tmp_path):
    compare(method, 2 * (METHODS.index(method) % 2), 1, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("method", METHODS)
def test_stopped_at_twenty_drawn_instants(method, workers, tmp_path):
    compare(method, workers, 20, tmp_path)


def test_every_kind_of_instant_is_drawn(tmp_path):
    whole = Instants()
    played(Cell("mora", 0), composition.Memory(tmp_path), whole)
    drawn = {whole.kinds[first - 1] for method in METHODS for first, _ in stops(whole.kinds, method, 1)}
    assert drawn == {"micro-batch", "evaluation", "event", "before a snapshot", "after a snapshot"}


def test_a_method_that_forgets_a_state_is_noticed(tmp_path, monkeypatch):
    """The comparison is not blind: without its moments a resumed run ends in other bits."""
    from rankwise.learning import state

    monkeypatch.setattr(state, "put_back_moments", lambda *_: None)
    with pytest.raises(AssertionError, match="tensors"):
        compare("lora", 0, 20, tmp_path)


def test_views_that_are_no_function_of_counters_are_noticed(tmp_path, monkeypatch):
    """The comparison is not blind: pictures mirrored by torch's own generator do not come back."""
    from rankwise.streams import batches

    def loose(split, names, *_):
        turned = torch.rand(len(split)) < 0.5
        return replace(split, inputs=torch.where(turned[:, None, None], split.inputs.flip(2), split.inputs))

    monkeypatch.setattr(batches, "views", loose)
    with pytest.raises(AssertionError, match="tensors"):
        compare("lora", 0, 3, tmp_path)
