"""Files that mean harm: nothing runs, nothing is read or written elsewhere, and each is refused by name or is small.

The files are made by `hostile`, and opened by `hostile_run.py`: each in a process of its own in which Python
notes every file, program and address that is asked for.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fresh import python
from hostile_run import MEGABYTES, SECONDS

EVERY = 3
"""Each third case in the quick suite; all of them where it is asked for."""
MINE = Path(__file__).with_name("hostile_run.py")


def opened(folder: Path, every: int) -> list[dict[str, Any]]:
    own = {"HF_HOME": str(folder / "cache"), "TMPDIR": str(folder), "HF_HUB_OFFLINE": "1"}
    own |= {"PYTHONDONTWRITEBYTECODE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
    (folder / "work").mkdir()
    done = python(str(MINE), str(folder / "work"), str(every), folder=folder, seconds=1700, **own)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def faults(case: dict[str, Any]) -> Iterator[str]:
    """What opening a case did that it must not."""
    if case["outcome"] not in ("read", "refused"):
        yield f"{case['outcome']}: {case['said']}"
    if case["outcome"] == "refused" and len(case["said"]) < 20:
        yield f"refused without a reason: {case['said']!r}"
    if case["must"] and case["outcome"] == "read":
        yield "read, though it must be refused"
    if case["breaches"] or case["canary"]:
        yield f"reached {case['breaches'] + case['canary']}"
    if case["seconds"] > SECONDS:
        yield f"took {case['seconds']:.1f} s"
    if case["bytes"] - case["declared"] > MEGABYTES * 1_000_000:
        yield f"took {case['bytes'] / 1e6:.0f} MB"


def check(cases: list[dict[str, Any]], at_least: int) -> None:
    assert len(cases) >= at_least
    assert sum(case["outcome"] == "refused" for case in cases) > len(cases) / 2
    found = [f"{case['name']}: {'; '.join(faults(case))}" for case in cases if any(faults(case))]
    assert not found, f"{len(found)} of {len(cases)}\n" + "\n".join(found)


@pytest.mark.timeout(1800)
def test_hostile_files_do_no_harm(tmp_path: Path) -> None:
    check(opened(tmp_path, EVERY), 270)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_all_hostile_files_do_no_harm(tmp_path: Path) -> None:
    check(opened(tmp_path, 1), 800)
