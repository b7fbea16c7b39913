"""Strategies where answers are words: what works on tokens works, what needs classes is refused by name."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
import torch
from lab import Stop, Stopping, ends, events, left

import rankwise
from rankwise.api import learner_of, resolve
from rankwise.errors import ConflictError

ROWS = {
    "moods": [("the cat sits", "good"), ("the dog runs", "bad"), ("a cat runs far", "good"), ("a dog sits", "bad")],
    "colours": [("a mat", "red , blue"), ("the mat", "blue"), ("on a mat far away", "red"), ("on the mat", "blue")],
}
HELD = ({"kind": "ewc", "samples": 4}, {"kind": "l2"}, {"kind": "lwf"})
REHEARSED = ({"kind": "replay", "size": 6, "batch_size": 3}, {"kind": "ema", "decay": 0.5}, {"kind": "consistency"})


@pytest.fixture
def asked(writers, tmp_path):
    """A config of two tasks for a base of a kind, with strategies."""
    for name, rows in ROWS.items():
        (tmp_path / f"{name}.jsonl").write_text("\n".join(json.dumps({"text": a, "reply": b}) for a, b in rows * 2))

    def config(kind: str, *parts: dict[str, Any]) -> dict[str, Any]:
        files = [{"name": n, **dict.fromkeys(("train", "test"), str(tmp_path / f"{n}.jsonl"))} for n in ROWS]
        return {
            "method": "lora",
            "model": {"name": str(writers(kind)), "max_length": 24},
            "stream": {"name": "asked", "kind": "instruction", "tasks": files, "input": "text", "target": "reply"}
            | {"validation": 0},
            "objective": {"kind": "language", "max_new_tokens": 4},
            "adapter": {"rank": 2},
            "strategy": list(parts),
            "train": {"steps": 2, "batch_size": 4, "lr": 1e-2, "device": "cpu", "threads": 1, "snapshot_seconds": 0}
            | {"log_every": 1},
        }

    return config


@pytest.mark.parametrize("kind", ["gpt2", "t5"])
@pytest.mark.parametrize("parts", [HELD, REHEARSED], ids=["held", "rehearsed"])
def test_each_step_in_a_sitting_of_its_own(asked, tmp_path, kind, parts):
    config = asked(kind, *parts)
    rankwise.run(config, out=tmp_path / "whole")
    with contextlib.suppress(Stop):
        rankwise.run(config, out=tmp_path / "parts", watch=Stopping(2))
    while not (tmp_path / "parts" / "results.json").exists():
        with contextlib.suppress(Stop):
            rankwise.resume(tmp_path / "parts", watch=Stopping(2))
    assert left(tmp_path / "parts") == left(tmp_path / "whole")
    added = {"ewc", "l2"} if parts is HELD else {"rehearsal"}
    assert set(events(tmp_path / "whole", "step")[-1]["losses"]) == {"language", *added}


def test_the_teacher_answers_over_the_vocabulary(asked, tmp_path):
    out = tmp_path / "run"
    rankwise.run(asked("gpt2", {"kind": "lwf"}), out=out)
    first, last = ends(out)
    assert first["strategies/lwf/teacher"].shape[0] == 8 and first["strategies/lwf/teacher"].shape[1] > 8
    assert last["strategies/lwf/teacher"].numel() == 0  # nothing follows the last task
    assert torch.isfinite(first["strategies/lwf/teacher"]).all()


@pytest.mark.parametrize(
    "part", [{"kind": "derpp"}, {"kind": "lwf", "form": "multi-class"}, {"kind": "ewc", "estimator": "sampled"}]
)
def test_what_needs_classes_is_refused_by_name(asked, part):
    with pytest.raises(ConflictError, match=f"strategy '{part['kind']}' and answers in words"):
        learner_of(*resolve(asked("gpt2", part)))
