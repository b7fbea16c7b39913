"""What the tests of this folder share: modules beside them and of the adapters' tests, runs, a laboratory."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import rankwise
from rankwise.config import merged

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
sys.path.append(str(HERE.parent / "adapters"))  # tiny models

Digits = Callable[..., rankwise.Run]


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Digits:
    """Run a method over the small stream, once for each config: digits(method, **tables)."""
    from digit_runs import SMALL

    done: dict[str, rankwise.Run] = {}

    def run(method: str, **tables: Any) -> rankwise.Run:
        config = merged(SMALL, {"method": method, **tables})
        key = repr(config)
        if key not in done:
            done[key] = rankwise.run(config, out=tmp_path_factory.mktemp(method) / "run")
        return done[key]

    return run


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory):
    """Small runs and learners, on images or on texts."""
    from lab import Lab

    return Lab(tmp_path_factory.mktemp("lab"))
