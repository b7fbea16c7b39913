"""Runs in which a tiny language model learns to write answers, stopped and resumed; and encoders on pairs of texts."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import rankwise
from rankwise.config import merged
from rankwise.errors import ConflictError, UsageError
from rankwise.models import Answers, load_backbone
from rankwise.objectives.language import answer_losses

MOODS = [("the cat sits", "good"), ("the dog runs", "bad"), ("a cat runs far", "good"), ("a dog sits on a mat", "bad")]
COLOURS = [("a mat", "red , blue"), ("the mat", "blue"), ("on a mat far away", "red , blue"), ("on the mat", "blue")]


@pytest.fixture
def asked(writers, tmp_path):
    """A config of two instruction tasks for a base of a kind."""
    for name, rows in (("moods", MOODS), ("colours", COLOURS)):
        lines = [json.dumps({"text": f"{a} {'?' * (i % 3)}", "reply": b}) for i in range(4) for a, b in rows]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))

    def config(kind: str, method: str = "lora", **tables: Any) -> dict[str, Any]:
        files = [
            {"name": name, **dict.fromkeys(("train", "test"), str(tmp_path / f"{name}.jsonl"))}
            for name in ("moods", "colours")
        ]
        whole = {
            "method": method,
            "model": {"name": str(writers(kind)), "max_length": 24},
            "stream": {"name": "asked", "kind": "instruction", "tasks": files, "input": "text", "target": "reply"},
            "objective": {"kind": "language", "max_new_tokens": 6},
            "adapter": {"rank": 4},
            "train": {
                "steps": 2,
                "batch_size": 4,
                "device": "cpu",
                "threads": 1,
                "snapshot_seconds": 0,
                "log_every": 1,
            },
        }
        whole["stream"] |= {"prompt": "question : {text} answer :", "validation": 0}
        return merged(whole, tables)

    return config


LEARNT = {
    "train": {"steps": 32, "batch_size": 8, "lr": 0.03, "schedule": "constant", "snapshot_seconds": 30, "log_every": 20}
}


@pytest.mark.parametrize(("kind", "method"), [("gpt2", "mora"), ("llama", "lora"), ("t5", "lora")])
def test_two_steps_saved_and_resumed_at_each(asked, small, tmp_path, kind, method):
    config = asked(kind, method)
    rankwise.run(config, out=tmp_path / "whole")
    with pytest.raises(RuntimeError):
        rankwise.run(config, out=tmp_path / "parts", watch=small.stopping(2, RuntimeError))
    sittings = 1
    while not (tmp_path / "parts" / "results.json").exists():
        sittings += 1
        with contextlib.suppress(RuntimeError):
            rankwise.resume(tmp_path / "parts", watch=small.stopping(2, RuntimeError))
    assert sittings >= 3
    whole = small.left(tmp_path / "whole")
    assert small.left(tmp_path / "parts") == whole
    assert len(small.losses(tmp_path / "whole")) == 4
    assert all(0 <= score <= 1 for row in whole["results"]["matrix"] for score in row)
    assert whole["results"]["zero_shot"] == [0, 0]


def test_a_saved_adapter_gives_the_same_losses_on_the_bare_base(asked, tmp_path, writers):
    run = rankwise.run(asked("gpt2", train={"lr": 0.1}), out=tmp_path / "run")
    bare = load_backbone(str(writers("gpt2")), answers=Answers(length=6))
    batch = bare.encode([("question : the cat sits answer :", "good")])

    def losses(module: torch.nn.Module) -> torch.Tensor:
        with torch.no_grad():
            return answer_losses(bare.language.read(module.eval(), batch).logits, *bare.language.targets(batch))

    before = losses(bare.module)
    assert torch.equal(losses(rankwise.load(bare.module, run.path / "adapter")), losses(run.model))
    assert not torch.equal(losses(bare.module), before)


@pytest.mark.parametrize(("kind", "answer"), [("llama", "generate"), ("llama", "labels")])
def test_answers_are_learnt(asked, tmp_path, kind, answer):
    first = {"stream": {"first_tasks": 1}, "objective": {"answer": answer}}
    results = rankwise.run(asked(kind, **merged(LEARNT, first)), out=tmp_path / "run").results
    assert results["matrix"] == [[1.0]]
    assert results["zero_shot"] == ([0.0] if answer == "generate" else [pytest.approx(0.5, abs=0.5)])


def test_the_loss_of_a_seq2seq_model_falls(asked, small, tmp_path):
    few = {"stream": {"first_tasks": 1}, "train": {"steps": 20, "lr": 0.03}}
    rankwise.run(asked("t5", **few), out=tmp_path / "run")
    losses = small.losses(tmp_path / "run")
    assert sum(losses[-4:]) < 0.7 * sum(losses[:4])


@pytest.mark.parametrize("method", ["finetune", "replay"])
def test_other_methods_learn_to_write_too(asked, tmp_path, method):
    results = rankwise.run(asked("llama", method, **LEARNT), out=tmp_path / "run").results
    assert results["matrix"][-1][-1] == 1.0
    assert method == "finetune" or results["matrix"][-1][0] == 1.0


def test_a_step_is_the_same_in_micro_batches(asked, small, tmp_path):
    runs = [tmp_path / "whole", tmp_path / "cut"]
    for out, parts in zip(runs, (1, 2), strict=True):
        rankwise.run(asked("llama", train={"accumulate": parts, "bucket": True, "lr": 0.05}), out=out)
    whole, cut = (small.losses(out) for out in runs)
    assert whole == pytest.approx(cut, abs=1e-5)
    assert len(set(whole)) == 4


def test_streams_and_objectives_that_do_not_fit_are_refused(asked):
    with pytest.raises(UsageError, match=r"objective\.kind = 'language'"):
        rankwise.run(
            merged(asked("llama"), {"objective": {"kind": "classify", "max_new_tokens": None}}) | {"objective": {}}
        )
    with pytest.raises(UsageError, match=r'kind = "instruction"'):
        config = asked("llama", stream={"kind": "cross-domain"})
        config["stream"].pop("prompt")
        rankwise.run(config)


def test_an_encoder_learns_classes_of_pairs_of_texts(writers, tmp_path):
    rows = [
        ("the cat", "a cat", "same"),
        ("the cat", "a dog", "other"),
        ("red", "red", "same"),
        ("red", "blue", "other"),
    ]
    lines = [json.dumps(dict(zip(("one", "two", "label"), row, strict=True))) for row in rows * 6]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines))
    config = {
        "method": "lora",
        "model": {"name": str(writers("bert"))},
        "stream": {
            "name": "p",
            "kind": "task-incremental",
            "train": "pairs.jsonl",
            "input": ["one", "two"],
            "validation": 0,
        },
        "train": {"steps": 30, "batch_size": 8, "lr": 0.01, "device": "cpu", "threads": 1, "bucket": True},
    }
    config["stream"]["train"] = str(tmp_path / "pairs.jsonl")
    results = rankwise.run(config, out=tmp_path / "run").results
    assert results["matrix"][0][0] == 1.0
    swapped = load_backbone(str(writers("bert")))
    features = swapped.features(swapped.encode([("red", "blue"), ("blue", "red")]))
    assert not torch.allclose(features[0], features[1], atol=1e-4)


@pytest.mark.parametrize(
    ("method", "strategies"),
    [("lora", ["ewc"]), ("mora", ["lwf", "l2"]), ("lora", ["ema"]), ("i-lora", []), ("o-lora", [])],
)
def test_what_protects_the_past_works_on_answers_in_words(asked, tmp_path, method, strategies):
    run = rankwise.run(asked("llama", method, strategy=[{"kind": kind} for kind in strategies]), out=tmp_path / "run")
    assert all(0 <= score <= 1 for row in run.results["matrix"] for score in row)


def test_what_needs_a_score_for_each_class_is_refused_by_name(asked):
    with pytest.raises(ConflictError, match=r"derpp.*answers in words"):
        rankwise.run(asked("llama", strategy=[{"kind": "derpp"}]))


@pytest.mark.slow
def test_stories260k_learns_the_form_of_an_answer(shared, tmp_path):
    config = Path(__file__).parents[2] / "benchmarks" / "streams" / "instructions.toml"
    few = ["stream.train_limit=400", "stream.test_limit=100", "train.epochs=2", "stream.first_tasks=1"]
    results = rankwise.run(config, out=tmp_path / "run", overrides=few).results
    assert results["zero_shot"][0] == 0.0
    assert results["matrix"][0][0] > 0.4
