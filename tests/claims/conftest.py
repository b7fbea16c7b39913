"""Claims made up for the tests: cheap to measure, and known to hold, to fail or to stay open."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rankwise.claims.harness import measuring, page
from rankwise.claims.harness.claim import Claim, Threshold
from rankwise.errors import NonFiniteError

MEASURED: list[tuple[str, int]] = []


def made(number: str, value: float, bound: float, spread: float = 0.0, **fields: object) -> Claim:
    """A claim whose value is `value` give or take `spread`, and should be at most `bound`."""

    def measure(seed: int) -> dict[str, float]:
        MEASURED.append((number, seed))
        if value < 0:
            raise NonFiniteError("step 3: loss is nan")
        return {"size": value + spread * (seed - 1), "extra": float(seed)}

    given = {"seeds": 3, "thresholds": (Threshold("size", "<=", bound),), **fields}
    return Claim("made", number, f"claim {number}", "nowhere", "Small.", measure=measure, **given)


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Claim]:
    """The only claims there are: `made`, in the current folder `tmp_path`."""
    found = {
        "holds": made("1", 0.5, 1.0, 0.01),
        "open": made("2", 0.9, 1.0, 0.2),
        "fails": made("3", 2.0, 1.0),
        "breaks": made("4", -1.0, 1.0),
        "absent": made("5", 0.5, 1.0, needs=lambda: "no data here"),
    }
    for module in (measuring, page):
        monkeypatch.setattr(module, "claims_of", lambda slug: tuple(found.values()), raising=False)
    monkeypatch.setattr(page, "slugs", lambda: ["made"])
    monkeypatch.chdir(tmp_path)
    MEASURED.clear()
    return found


@pytest.fixture
def measured() -> list[tuple[str, int]]:
    """(claim, seed) of every measurement that was made and not taken over."""
    return MEASURED


@pytest.fixture
def rows(room: dict[str, Claim], tmp_path: Path) -> dict[str, dict]:
    """Their rows, as JSON gives them back."""
    outcomes = measuring.measure_all(list(room.values()), None, 1, tmp_path / "kept")
    return {name: json.loads(json.dumps(page.record(outcome))) for name, outcome in zip(room, outcomes, strict=True)}
