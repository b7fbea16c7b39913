"""Every command that writes, killed, torn and out of space at its calls: `benchmarks/crash.py`, in part.

What is cheap is failed at every call in every way, the rest at every n-th point, another n-th in each version of the
table of points; all of them are done by the benchmark.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rankwise import cli

pytestmark = pytest.mark.timeout(1200)  # all points are one fixture: minutes where the machine does other work, too
READERS = {"log", "evaluate", "compare", "methods", "show", "schema"}
"""Commands that write nothing."""
LEAST = 2000
"""Points in all."""
SHARE = {"run": 6, "resume": 6, "undo": 3, "path": 4, "sweep": 30, "demo": 60}
"""First word of a scene's name -> every how manieth point; 1 for the others."""
OTHERS = 6
"""Times that, for the methods after the first."""


@pytest.fixture(scope="module")
def stage(crash) -> Iterator[tuple[Path, dict[str, Any]]]:
    """A place for points, and the scenes by name."""
    with crash.world() as (place, scenes):
        yield place, {scene.name: scene for scene in scenes}


@pytest.fixture(scope="module")
def done(crash, stage) -> dict[str, Any]:
    """All points of this test, once."""
    place, scenes = stage
    return {name: crash.fail_all(scene, place, every(name), first(name)) for name, scene in scenes.items()}


def every(name: str) -> int:
    verb, _, rest = name.partition(" ")
    other = rest and verb in ("run", "resume", "undo") and not rest.startswith("mora")
    return SHARE.get(verb, 1) * (OTHERS if other else 1)


def first(name: str) -> int:
    return random.Random(name).randrange(every(name))


def test_no_point_is_bad(done):
    assert [text for outcome in done.values() for text in outcome.bad] == []


def test_there_are_points_enough(crash, done):
    assert sum(sum(outcome.counts.values()) for outcome in done.values()) >= LEAST
    assert {mode for outcome in done.values() for mode in outcome.counts} == set(crash.MODES)
    assert sum(outcome.deaths for outcome in done.values()) >= 10


def test_every_command_that_writes_is_there(stage):
    verbs = {name.split()[0] for name in stage[1]} - {"save"}  # of Python only
    known = {command.__name__ for command in (*cli.RUNS, *cli.MANY, *cli.LISTS)}
    assert known - READERS == verbs


@pytest.mark.parametrize("verb", sorted(READERS - {"methods", "show", "schema"}))
def test_readers_write_nothing(crash, stage, verb):
    import _scenes
    from _faults import Disk

    place, scenes = stage
    folder = crash._set(scenes["report"], place / "read")
    disk = Disk(folder)
    disk.after = lambda call: None
    with disk.ruling():
        code, said = _scenes.command(verb, "HERE/run")(folder)
    assert code == 0, said
    assert set(disk.calls) <= {"open", "close"}
    assert disk.escaped == []


def test_a_writer_that_is_not_atomic_is_noticed(crash, stage):
    """The matrix is not blind: a command that writes its file in place fails at some points."""
    from _scenes import Scene

    def careless(folder: Path) -> tuple[int, str]:
        try:
            (folder / "notes.json").write_text('{"a": 1}')
        except (OSError, KeyboardInterrupt) as error:
            return 1, f"error: notes.json: {error}"
        return 0, ""

    outcome = crash.fail_all(Scene("careless", None, careless, {"same": (careless, None)}), stage[0], 1)
    assert any("tear" in text for text in outcome.bad)


def test_a_write_past_the_calls_is_noticed(crash, stage):
    """Nor deaf: what changes files without the calls that it fails is told."""
    import _faults
    from _scenes import Scene

    real = _faults.io.FileIO

    def sly(folder: Path) -> tuple[int, str]:
        with real(folder / "notes", "w") as file:
            file.write(b"never seen")
        return 0, ""

    outcome = crash.fail_all(Scene("sly", None, sly, {}), stage[0], 1)
    assert any("past the calls" in text for text in outcome.bad)
