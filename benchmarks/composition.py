"""Which method goes with which strategy, and with which dynamics of another: every pair trains, saves and resumes on a
tiny base, or is refused by name.

    python benchmarks/composition.py

Writes docs/composition.md.
"""

from __future__ import annotations

import copy
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import ViTConfig, ViTModel

from rankwise import papers
from rankwise.adapters import is_adapted, ledger
from rankwise.api import backbone_of, branch_of, parts_of, resolve
from rankwise.config import Config
from rankwise.errors import UsageError
from rankwise.learning.learner import Learner
from rankwise.learning.processes import Processes
from rankwise.learning.run import Watch, run
from rankwise.models import Backbone
from rankwise.objectives import OBJECTIVES
from rankwise.strategies import STRATEGIES
from rankwise.streams import Stream, build
from rankwise.tensors import load_tensors, tensor_writer

PAGE = Path(__file__).parents[1] / "docs" / "composition.md"
SMALL: Mapping[str, dict[str, Any]] = {
    "replay": {"size": 8, "batch_size": 3},
    "derpp": {"size": 8, "batch_size": 3},
    "ewc": {"samples": 4},
    "ema": {"decay": 0.5},
}
"""Settings under which a strategy does something within a few steps."""
PARTNERS: Mapping[str, tuple[str, ...]] = {"consistency": ("replay", "ema")}
"""What a strategy needs beside it."""
ALONE = "alone"
TINY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}


class Stopped(Exception):
    """Raised by `Stopping`."""


class Stopping(Watch):
    """Raises an error after the n-th step."""

    def __init__(self, steps: int) -> None:
        """Count down from `steps`."""
        self.steps = steps

    def stepped(self, done: int, loss: float) -> None:
        """Count."""
        self.steps -= 1
        if self.steps == 0:
            raise Stopped


@dataclass
class Memory:
    """A ledger in memory: events, and snapshots as the bytes a file would hold."""

    folder: Path
    events: list[str] = field(default_factory=list)
    snapshots: list[tuple[int, bytes, str]] = field(default_factory=list)
    path: Path = Path("memory")

    def clean(self) -> None:
        """Nothing is ever half written here."""

    def last(self) -> tuple[Any, list[str]]:
        """Return the newest snapshot."""
        if not self.snapshots:
            return None, []
        _, data, values = self.snapshots[-1]
        file = self.folder / "state.safetensors"
        file.write_bytes(data)
        return (load_tensors(file, finite=False), json.loads(values)), []

    def rewind(self, offset: int, number: int) -> None:
        """Forget the events after a snapshot."""
        del self.events[offset:]

    def record(self, event: str, **values: Any) -> None:
        """Keep an event."""
        self.events.append(json.dumps({"event": event, **values}))

    def snapshot(self, state: tuple[dict[str, torch.Tensor], dict[str, Any]], number: int, *, kept: bool) -> None:
        """Keep a snapshot."""
        tensors, values = state
        file = self.folder / "written.safetensors"
        with file.open("wb") as out:
            tensor_writer(tensors)(out)
        self.snapshots.append((number, file.read_bytes(), json.dumps({**values, "events": len(self.events)})))

    def newest(self) -> str:
        """Say where a resumed run starts."""
        return "in memory"

    def left(self) -> tuple[list[str], bytes]:
        """Return what must not depend on when a run was stopped."""
        return self.events, self.snapshots[-1][1]


@dataclass(frozen=True)
class Cell:
    """One method with some strategies, or with other dynamics than its own."""

    method: str
    strategies: tuple[str, ...] = ()
    dynamics: str = ""

    @property
    def parts(self) -> tuple[str, ...]:
        """What does not come with the method."""
        return (self.dynamics,) if self.dynamics else self.strategies

    @property
    def config(self) -> dict[str, Any]:
        """The run of the cell."""
        parts = [*(p for name in self.strategies for p in PARTNERS.get(name, ())), *self.strategies]
        learns = papers.method(self.method).live == "adapter"
        other = {"dynamics": {"kind": self.dynamics}} if self.dynamics else {}
        return {
            "method": self.method,
            "model": {"name": str(base())},
            "stream": {"name": "digits", "classes_per_task": 5, "train_limit": 10, "test_limit": 10},
            "adapter": ({"rank": 4} if learns else {}) | other,
            "strategy": [{"kind": name, **SMALL.get(name, {})} for name in dict.fromkeys(parts)],
            "train": {"steps": 2, "batch_size": 4, "lr": 1e-2, "device": "cpu", "snapshot_seconds": 0, "log_every": 1},
        }


def dynamics() -> tuple[str, ...]:
    """Return the dynamics there are, by the methods that bring them."""
    return tuple(slug for slug in papers.slugs() if papers.method(slug).dynamics is not None)


def cells() -> list[Cell]:
    """Return every method alone, with each strategy, and with the dynamics of each other method."""
    alone = [Cell(m, s) for m in papers.slugs() for s in ((), *((name,) for name in STRATEGIES))]
    return [*alone, *(Cell(m, dynamics=kind) for m in papers.slugs() for kind in dynamics() if kind != m)]


def pairs() -> Iterator[tuple[str, str]]:
    """Yield every two strategies, once."""
    names = list(STRATEGIES)
    return ((a, b) for i, a in enumerate(names) for b in names[i + 1 :])


def refusal(cell: Cell) -> str | None:
    """Run a cell whole, and again with a stop in the middle; return why it was refused, None if it was not.

    Raises:
        AssertionError: the resumed run differs, the adapter did not learn, or the refusal names no part of the cell.

    """
    try:
        learner = learner_of(cell)
    except UsageError as error:
        return named(cell, error)
    with tempfile.TemporaryDirectory() as folder:
        whole, parted = Memory(Path(folder)), Memory(Path(folder))
        try:
            done = run(learner, whole, Watch())  # pyright: ignore[reportArgumentType]
        except UsageError as error:
            return f"at the start of a task, when it shows: {named(cell, error)}"
        assert done.total >= 2, f"{cell}: {done.total} steps"
        assert learnt(learner), f"{cell}: no weight of the adapter moved"
        assert resumed(cell, parted, done.total // 2 + 1) == whole.left(), f"{cell}: the resumed run differs"
    return None


def learnt(learner: Learner) -> bool:
    """Say whether the adapter, or an edit of the base, changes what the model says; True where there is none."""
    if not is_adapted(learner.model) or ledger(learner.model):
        return True
    rows = learner.tasks[0].test
    return not torch.equal(learner.features(rows), learner.features(rows, ()))


def named(cell: Cell, error: UsageError) -> str:
    """Return the text of a refusal, which must name a part of the cell."""
    kinds = [part["kind"] for part in cell.config["strategy"]] + [cell.dynamics] * bool(cell.dynamics)
    words = [*(f"'{kind}'" for kind in kinds), *(["dynamics"] if cell.dynamics else [])]
    assert not kinds or any(word in str(error) for word in words), f"{cell}: it names no part: {error}"
    return str(error)


def resumed(cell: Cell, ledger: Memory, stop: int) -> tuple[list[str], bytes]:
    """Run a cell with a stop after some steps, and return what is left in the end."""
    try:
        run(learner_of(cell), ledger, Stopping(stop))  # pyright: ignore[reportArgumentType]
    except Stopped:
        run(learner_of(cell), ledger, Watch())  # pyright: ignore[reportArgumentType]
    return ledger.left()


def outcome(cell: Cell) -> tuple[list[str], bytes] | str:
    """Run a cell once; return what it leaves, or why it is refused."""
    try:
        learner = learner_of(cell)
    except UsageError as error:
        return str(error)
    with tempfile.TemporaryDirectory() as folder:
        ledger = Memory(Path(folder))
        try:
            run(learner, ledger, Watch())  # pyright: ignore[reportArgumentType]
        except UsageError as error:
            return str(error)
        return ledger.left()


def learner_of(cell: Cell) -> Learner:
    """Put a cell together, on copies of base and stream that are loaded once."""
    torch.set_num_threads(1)
    config, method = resolve(cell.config)
    backbone, tasks = loaded(config.model.model_dump_json()), stream(config.stream.model_dump_json())
    backbone = replace(backbone, module=copy.deepcopy(backbone.module))
    objective = OBJECTIVES[config.objective.kind].made(config.objective, backbone, tasks, config.seed)
    branch, parts = branch_of(method, config.adapter), parts_of(config, method)
    return Learner(config, method, branch, backbone, tasks, objective, parts, Processes.start(config.train))


@cache
def base() -> Path:
    """Write a tiny base, once, and return its folder."""
    folder = Path(tempfile.mkdtemp())
    with torch.random.fork_rng():
        torch.manual_seed(7)
        ViTModel(ViTConfig(**TINY, image_size=8, patch_size=4), add_pooling_layer=False).save_pretrained(folder)
    return folder


@cache
def loaded(model: str) -> Backbone:
    """Load the base of a [model] table, once."""
    return backbone_of(Config.model_validate({"model": json.loads(model)}))


@cache
def stream(table: str) -> Stream:
    """Build the stream of a [stream] table, once."""
    return build(Config.model_validate({"stream": json.loads(table)}).stream, 0)


def page(found: Mapping[Cell, str | None]) -> str:
    """Return two tables as Markdown: a row a method, a column a part, a note for each reason."""
    notes: list[str] = []
    by_strategy = {name: {m: Cell(m, () if name == ALONE else (name,)) for m in papers.slugs()} for name in COLUMNS}
    by_dynamics = {kind: {m: Cell(m, dynamics=kind) for m in papers.slugs() if m != kind} for kind in dynamics()}
    first, second = (table(columns, found, notes) for columns in (by_strategy, by_dynamics))
    listed = [f"{i}. {note}" for i, note in enumerate(notes, start=1)]
    lines = [*HEAD.splitlines(), "", *first, "", *BETWEEN.splitlines(), "", *second, "", *REASONS.splitlines(), ""]
    return "\n".join([*lines, *listed, ""])


def shown(cell: Cell, reason: str) -> str:
    """Return a reason as the page has it, alike for cells that differ in a name alone."""
    for word in (cell.dynamics, cell.method):
        reason = reason.replace(f"'{word}'", "…") if word else reason
    return " ".join(reason.split())


def table(columns: Mapping[str, Mapping[str, Cell]], found: Mapping[Cell, str | None], notes: list[str]) -> list[str]:
    """Return the lines of one table; new reasons join `notes`."""

    def mark(cell: Cell | None) -> str:
        if cell is None:
            return "own"
        reason = found[cell] and shown(cell, found[cell] or "")
        if reason is None:
            return "yes"
        if reason not in notes:
            notes.append(reason)
        return f"[{notes.index(reason) + 1}]"

    head = ["method", *(name if name == ALONE else f"`{name}`" for name in columns)]
    rows = [[f"`{m}`", *(mark(column.get(m)) for column in columns.values())] for m in papers.slugs()]
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


COLUMNS = (ALONE, *STRATEGIES)
REASONS = """## Refused, and why

Where a reason names the method or the dynamics of its cell, it has `…` here.
"""
HEAD = """# What goes with what

Written by `benchmarks/composition.py`; do not edit. Each cell is a run of two tasks on a tiny vision transformer: it
trains, is stopped in the middle, resumes from its snapshot and ends with the same bits as a run that was not stopped
(yes), or is refused by an error that names the part and the reason (a number): before anything is trained, unless
the reason says otherwise.

## Methods with strategies

`consistency` runs beside `replay` and `ema`, which it needs.

Strategies act in the order of their names, whatever the order in a config, so two of them give the same bits both ways.
"""
BETWEEN = """## Methods with the dynamics of another

`[adapter.dynamics] kind = "altlora"` in the config of any method: how gradients become updates, and what is done to the
adapter between steps. The rest of the method stays: its form, its gate, its start, its strategies.
"""


def show(done: int, of: int, cell: Cell, reason: str | None) -> None:
    """Print one line of progress."""
    print(f"{done}/{of} {cell.method} + {', '.join(cell.parts) or '-'}: {reason or 'yes'}", flush=True)


def main(asked: Sequence[str] = ()) -> int:
    """Run all cells (of the methods named, else all) and write the page, if all of them hold."""
    found: dict[Cell, str | None] = {}
    chosen = [cell for cell in cells() if not asked or cell.method in asked]
    failed = 0
    for i, cell in enumerate(chosen, start=1):
        try:
            found[cell] = refusal(cell)
            show(i, len(chosen), cell, found[cell])
        except Exception as error:  # the table of what fails is worth more than the first failure
            failed += 1
            print(f"{i}/{len(chosen)} FAILED {cell}: {type(error).__name__}: {error}", flush=True)
    if not asked and not failed:
        PAGE.write_text(page(found))
        print(PAGE)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
