"""A run that writes answers, taken up again after it was saved: scored, undone, merged; and a model's folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import rankwise
from rankwise import saved
from rankwise.errors import UsageError
from rankwise.models import Answers, Backbone, load_backbone

ROWS = [("the cat sits", "good"), ("the dog runs", "bad"), ("a cat runs far", "good"), ("a dog sits on a mat", "bad")]


@pytest.fixture(params=["gpt2", "t5"])
def run(request, writers, tmp_path) -> Path:
    """Two instruction tasks learnt on a tiny base with a language head."""
    for name in ("one", "two"):
        lines = [json.dumps({"text": f"{a} {'?' * i}", "reply": b}) for i in range(3) for a, b in ROWS]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    files = [{"name": name, **dict.fromkeys(("train", "test"), f"{tmp_path}/{name}.jsonl")} for name in ("one", "two")]
    config: dict[str, Any] = {
        "method": "lora",
        "model": {"name": str(writers(request.param)), "max_length": 24},
        "stream": {"name": "asked", "kind": "instruction", "tasks": files, "input": "text", "target": "reply"},
        "objective": {"kind": "language", "max_new_tokens": 6},
        "adapter": {"rank": 4},
        "train": {"steps": 4, "batch_size": 4, "lr": 0.03, "device": "cpu", "threads": 1},
    }
    config["stream"] |= {"prompt": "question : {text} answer :", "validation": 0}
    rankwise.run(config, out=tmp_path / "run")
    return tmp_path / "run"


def losses(base: Backbone) -> torch.Tensor:
    assert base.language is not None
    batch = base.encode([("question : the cat sits answer :", "good")])
    known = {key: value for key, value in batch.items() if key in base.arguments}
    if base.language.form == "seq2seq":
        known["decoder_input_ids"] = known["input_ids"]
    with torch.no_grad():
        return base.module(**known).logits


def test_a_run_with_a_language_head_is_scored_undone_and_relearnt(run):
    results = json.loads((run / "results.json").read_text())
    assert rankwise.evaluate(run)["scores"] == results["matrix"][-1]
    adapter = (run / "adapter" / "adapter.safetensors").read_bytes()
    assert rankwise.undo(run)["undone"] == "two"
    assert [record["task"] for record in rankwise.log(run)] == ["one"]
    assert (run / "adapter" / "adapter.safetensors").read_bytes() != adapter
    assert rankwise.resume(run).results["matrix"] == results["matrix"]
    assert (run / "adapter" / "adapter.safetensors").read_bytes() == adapter


def test_a_run_with_a_language_head_merges_with_it(run, tmp_path):
    learnt, _ = saved.learnt(run)
    expected = losses(learnt)
    saved.merge_saved(run, tmp_path / "m")
    merged = load_backbone(str(tmp_path / "m"), answers=Answers(length=6))
    torch.testing.assert_close(losses(merged), expected, rtol=1e-5, atol=1e-5)
    plain = load_backbone(learnt.name, answers=Answers(length=6))
    assert not torch.allclose(losses(plain), expected, atol=1e-4)


def test_what_is_not_a_model_of_transformers_is_not_written(tmp_path):
    from rankwise.surgery.plain import write_plain

    with pytest.raises(UsageError, match="Linear is no model of transformers"):
        write_plain(torch.nn.Linear(2, 2), None, tmp_path / "x", {})
    assert not (tmp_path / "x").exists()
