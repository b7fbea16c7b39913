"""Makes the modules beside this file importable, and the benchmark of crashes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

sys.path.insert(0, str(Path(__file__).parent))


BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def crash() -> Iterator[ModuleType]:
    """The benchmark of crashes, as a module."""
    sys.path.append(str(BENCHMARKS))
    try:
        import crash

        yield crash
    finally:
        sys.path.remove(str(BENCHMARKS))
