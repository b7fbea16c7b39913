"""Methods that edit the base or change ranks on the way: killed in the middle of a task, they end in the same bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from digit_runs import SMALL, stored

import rankwise
from rankwise.config import merged
from rankwise.learning.run import Watch

SETTINGS: dict[str, dict[str, Any]] = {
    "osft": {"adapter": {"dynamics": {"frozen": "importance", "examples": 16}}},
    "o-lora": {},
    "relora": {"adapter": {"dynamics": {"cycles": 2, "pruned": 0.5}}},
    "adalora": {},
    "pissa": {},
    "lora-xs": {},
    "codyra": {"adapter": {"dynamics": {"kappa_max": 0.5}}},
}


class Stop(Watch):
    """Ends the process, as far as the run can tell, after so many steps."""

    def __init__(self, after: int) -> None:
        self.left = after

    def stepped(self, done: int, loss: float) -> None:
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt


@pytest.mark.parametrize("slug", SETTINGS)
@pytest.mark.parametrize("after", [3, 8])
def test_a_run_that_was_killed_in_a_task_ends_as_if_it_had_not_been(slug, after, digits, tmp_path):
    whole = digits(slug, **SETTINGS[slug])
    config = merged(SMALL, {"method": slug, **SETTINGS[slug]})
    every = merged(config, {"train": {"snapshot_seconds": 0}})
    with pytest.raises(KeyboardInterrupt):
        rankwise.run(every, out=tmp_path / "run", watch=Stop(after))
    back = rankwise.resume(tmp_path / "run")
    assert back.results["matrix"] == whole.results["matrix"]
    same(whole.path, back.path)


def same(one: Path, other: Path) -> None:
    """Compare the tensors of two adapters bit for bit."""
    for name in ("adapter.safetensors", "head.safetensors"):
        first, second = stored(one, name), stored(other, name)
        assert first.keys() == second.keys()
        assert all(torch.equal(first[key], second[key]) for key in first), name
