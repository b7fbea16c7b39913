"""The examples of loops that are not ours, run as they stand."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def example(name: str) -> Any:
    """Import an example by its file."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_loop_of_ones_own(capsys):
    first, second = example("own_loop").main()
    assert min(first, second) > 0.98
    assert example("own_loop").main(strength=0.0)[0] < first - 0.02
    assert capsys.readouterr().out.startswith("accuracy on each task: [")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("live_peft", [False, True])
def test_a_trainer_and_a_live_peft_model(live_peft):
    hooks = example("trainer").main(live_peft).hooks
    assert hooks.step == 20 and [task.name for task in hooks.tasks] == ["1", "2"]
    held = hooks.strategies[0].held[0].importance
    assert any("lora_A" in name for name in held) == live_peft
    assert all(bool((tensor >= 0).all()) for tensor in held.values()) and any(float(t.sum()) for t in held.values())
