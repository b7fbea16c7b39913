"""What the tests of this folder share: the modules that lie beside them, and short runs over real digits."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import rankwise
from rankwise.config import merged

sys.path.insert(0, str(Path(__file__).parent))

SMALL = {
    "model": {"name": "embedded:vit"},
    "stream": {"name": "digits", "classes_per_task": 4, "train_limit": 24, "test_limit": 20},
    "train": {"steps": 5, "batch_size": 8, "device": "cpu", "log_every": 1},
}
"""Three tasks of 4, 4 and 2 digits, five steps each: enough to see what moves, too little to learn much."""

Digits = Callable[..., rankwise.Run]


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Digits:
    """Run a method over the small stream, once for each config: digits(method, **tables)."""
    done: dict[str, rankwise.Run] = {}

    def run(method: str, **tables: Any) -> rankwise.Run:
        config = merged(SMALL, {"method": method, **tables})
        key = repr(config)
        if key not in done:
            done[key] = rankwise.run(config, out=tmp_path_factory.mktemp(method) / "run")
        return done[key]

    return run
