"""Makes the modules beside this file importable, and the benchmark of crashes."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest
from loading import benchmark

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="module")
def crash() -> ModuleType:
    """The benchmark of crashes, as a module."""
    return benchmark("crash")
