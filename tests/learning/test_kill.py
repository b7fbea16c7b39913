"""The benchmark of killed runs, in small: `benchmarks/kill.py` starts, kills and resumes real processes."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
from loading import benchmark

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def kill(monkeypatch) -> ModuleType:
    """The benchmark, as a module; what it starts finds the package that is being tested."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    return benchmark("kill")


def smaller(kill: ModuleType) -> str:
    config = kill.CONFIG.replace("steps = 40", "steps = 4").replace("snapshot_seconds = 0.5", "snapshot_seconds = 0")
    return config.replace('name = "digits"', 'name = "digits"\ntrain_limit = 30\ntest_limit = 20')


@pytest.mark.slow
def test_killed_processes_end_as_if_they_had_not_been(kill, tmp_path):
    outcomes, seconds = kill.trial(tmp_path, smaller(kill), 3, 1, 0)
    assert seconds > 0
    assert [outcome.differs for outcome in outcomes] == [(), (), ()]
    assert {outcome.aim for outcome in outcomes} == {"any time", "snapshot"}


def test_the_comparison_sees_every_kind_of_difference(small, kill, tmp_path):
    run = small.run(tmp_path / "run")
    whole = kill.left(run)
    for name in ("adapter/adapter.safetensors", "matrix.csv"):
        data = (run / name).read_bytes()
        (run / name).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        differs = [key for key, value in kill.left(run).items() if value != whole[key]]
        assert differs == [name.split("/")[0].split(".")[0]]
        (run / name).write_bytes(data)
    events = (run / "events.jsonl").read_text()
    (run / "events.jsonl").write_text(events + events.splitlines()[-1] + "\n")
    assert kill.left(run)["events"] != whole["events"]
