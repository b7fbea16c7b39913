"""What every test may rely on: one thread, no network, and the folder of real data where there is one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Set before anything imports torch: results are compared bit for bit, and that holds for one number of threads.
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data: RANKWISE_SHARED, else `shared` beside the clone; its tests skip where it is absent."""
    named = os.environ.get("RANKWISE_SHARED")
    folder = Path(named) if named else ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"no folder of real data at {folder} (set RANKWISE_SHARED to use another)")
    return folder
