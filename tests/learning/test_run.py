"""The run as an onlooker sees it, its corner cases, and a run on text."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertModel, BertTokenizer

import rankwise
from rankwise.errors import StorageError, UsageError
from rankwise.learning.ledger import Ledger
from rankwise.learning.run import Watch

WORDS = ["cat", "dog", "pine", "oak", "rain", "snow", "bus", "ship", "a", "the", "big", "old"]


class Noting(Watch):
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.told: list[object] = []

    def note(self, text: str) -> None:
        self.told.append(text)

    def task(self, index: int, count: int, name: str, steps: int, done: int) -> None:
        self.told.append((index, count, name, steps, done))

    def stepped(self, done: int, loss: float) -> None:
        assert loss > 0
        self.told.append(done)

    def scored(self, name: str, scores: Sequence[float | None]) -> None:
        self.told.append((name, len(scores)))


def test_what_an_onlooker_is_told(small, tmp_path):
    watch = Noting()
    small.run(tmp_path / "run", watch=watch)
    first = [(0, 2, "digits-1", 3, 0), 1, 2, 3, ("digits-1", 2)]
    assert watch.told == [*first, (1, 2, "digits-2", 3, 0), 1, 2, 3, ("digits-2", 2)]


def test_what_an_onlooker_is_told_after_a_resumption(small, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        small.run(tmp_path / "run", watch=small.stopping(6, KeyboardInterrupt))
    watch = Noting()
    rankwise.resume(tmp_path / "run", watch=watch)
    assert watch.told == [(1, 2, "digits-2", 3, 2), 3, ("digits-2", 2)]


def test_joint_takes_the_steps_of_all_tasks_at_once(small, tmp_path):
    watch = Noting()
    small.run(tmp_path / "run", "joint", watch=watch)
    assert watch.told[0] == (0, 1, "all tasks", 6, 0)
    assert len(watch.told) == 8


def test_epochs_give_the_steps(small, tmp_path):
    watch = Noting()
    small.run(tmp_path / "run", watch=watch, train={"steps": None, "epochs": 2, "batch_size": 6})
    assert watch.told[0] == (0, 2, "digits-1", 6, 0)  # 15 rows: batches of 6, 6 and 3, twice


def test_no_steps_at_all_score_the_base(small, tmp_path):
    """Without training, class means of the base answer; blocks are there and change nothing."""
    runs = {m: small.run(tmp_path / m, m, train={"steps": 0}) for m in ("mora", "linear-probe")}
    tables = {"objective": {"predict": "means"}}
    runs["base"] = small.run(tmp_path / "base", "linear-probe", train={"steps": 0}, **tables)
    matrices = {name: json.loads((run / "results.json").read_text())["matrix"] for name, run in runs.items()}
    assert matrices["mora"] == matrices["base"]
    before = small.left(runs["mora"])
    rankwise.resume(runs["mora"])
    assert small.left(runs["mora"]) == before


def test_log_every(small, tmp_path):
    out = small.run(tmp_path / "run", train={"steps": 5, "log_every": 2})
    assert [line["step"] for line in small.events(out) if line["event"] == "step"] == [2, 4, 5, 2, 4, 5]


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> dict[str, Any]:
    """Config tables of a stream of sentences for a small encoder of words."""
    folder = tmp_path_factory.mktemp("text")
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    config = BertConfig(
        vocab_size=17,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=16,
    )
    with torch.random.fork_rng():
        torch.manual_seed(3)
        BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    BertTokenizer(vocab_file=str(folder / "vocab.txt"), vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    for part in ("train", "test"):
        lines = [row(i, part == "test") for i in range(40)]
        (folder / f"{part}.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    stream = {"name": "words", "train": str(folder / "train.jsonl"), "test": str(folder / "test.jsonl")}
    blank = {"classes_per_task": 2, "train_limit": None, "test_limit": None, "validation": 0}
    return {"model": {"name": str(folder)}, "stream": {**stream, **blank}}


def row(i: int, test: bool) -> dict[str, str]:
    """A sentence of two to six words about one of eight things, taken two by two as classes."""
    filler = [WORDS[8 + (i + k + test) % 4] for k in range(1 + i % 5)]
    return {"input": " ".join([*filler, WORDS[i % 8]]), "target": f"class {i % 8 // 2}"}


@pytest.mark.parametrize("method", ["mora", "lora"])
def test_a_run_on_text(small, tmp_path, text, method):
    """The base draws dropout in training, which stops and resumptions must not change."""
    whole = small.run(tmp_path / "whole", method, **text)
    assert [len(row) for row in json.loads((whole / "results.json").read_text())["matrix"]] == [2, 2]
    small.sittings(tmp_path / "parts", method, **text)
    assert small.left(tmp_path / "parts") == small.left(whole)


def test_padding_does_not_matter(small, tmp_path, text):
    """Each batch is padded to its longest text, so other batches in evaluation have other padding. Dropout is off here:
    its draws belong to a micro-batch, so another cut has others."""
    still = shutil.copytree(text["model"]["name"], tmp_path / "still")
    config = json.loads((still / "config.json").read_text())
    off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (still / "config.json").write_text(json.dumps({**config, **off}))
    tables = {**text, "model": {"name": str(still)}}
    whole = small.run(tmp_path / "whole", **tables)
    cut = small.run(tmp_path / "cut", **tables, train={"accumulate": 3, "eval_batch_size": 3})
    assert small.losses(cut) == pytest.approx(small.losses(whole), abs=1e-6)
    found = [json.loads((out / "results.json").read_text()) for out in (whole, cut)]
    assert found[0]["matrix"] == found[1]["matrix"]
    for one, two in zip(found[0]["diagnostics"][1], found[1]["diagnostics"][1], strict=True):
        assert one["active_atoms"] == pytest.approx(two["active_atoms"], rel=1e-3)
        assert one["block_share"] == pytest.approx(two["block_share"], rel=1e-3)


def test_a_base_that_cannot_read_the_stream_is_refused(small, tmp_path, text):
    with pytest.raises(UsageError, match=r"reads text.*holds image"):
        small.run(Path(tmp_path / "run"), model=text["model"])
    assert not (tmp_path / "run").exists()


def test_a_method_with_nothing_to_learn_is_refused_unless_it_only_scores(tmp_path):
    objective = {"head": "means", "predict": "means"}
    config = {"method": "linear-probe", "objective": objective, "stream": {"train_limit": 20, "test_limit": 10}}
    with pytest.raises(UsageError, match=r"has nothing to learn in phase .*; set train.steps = 0"):
        rankwise.run({**config, "train": {"steps": 1}}, out=tmp_path / "a")
    assert rankwise.run({**config, "train": {"steps": 0}}, out=tmp_path / "b").results["steps"] == 0


def test_the_record_of_a_large_stream_can_be_read_again(tmp_path):
    ledger, stream = Ledger(tmp_path), {"validation": list(range(1_000_000))}
    ledger.write_json("environment.json", {"stream": stream, "base": {}})
    (tmp_path / "config.toml").touch()
    ledger.refuse_changed(stream, {})
    with pytest.raises(StorageError, match="the stream has changed"):
        ledger.refuse_changed({"validation": []}, {})
