"""A laboratory for parts of a run: bases of 16 features, streams of a few rows, and a loop that stops where asked."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from stopping import Stop, Stopping, finish
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast, ViTConfig, ViTModel

import rankwise
from rankwise.api import learner_of, resolve
from rankwise.config import merged
from rankwise.learning.learner import Learner
from rankwise.learning.run import Watch, _terms
from rankwise.learning.step import step
from rankwise.strategies import Term
from rankwise.streams import Task

SIZE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
WORDS = ["[UNK]", "[PAD]", "sun", "rain", "snow", "wind", "red", "blue", "green", "black", "a", "day", "of"]


class Lab:
    """Makes learners and runs, on images or on texts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with torch.random.fork_rng():
            torch.manual_seed(7)
            vit = ViTConfig(**SIZE, image_size=8, patch_size=4)
            ViTModel(vit, add_pooling_layer=False).save_pretrained(folder / "image")
            bert = BertConfig(**SIZE, vocab_size=len(WORDS), max_position_embeddings=16)
            BertModel(bert, add_pooling_layer=False).save_pretrained(folder / "text")
        words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
        words.pre_tokenizer = pre_tokenizers.Whitespace()
        fast = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", pad_token="[PAD]")
        fast.save_pretrained(folder / "text")
        self._texts(folder / "texts.jsonl")

    def _texts(self, path: Path) -> None:
        """Four classes of texts of different lengths: a word of the class among others."""
        rows = [
            {"text": " ".join([*["a day of"] * (i % 3), word, *["day"] * (i % 2)]), "label": word}
            for word in ("sun", "rain", "snow", "wind")
            for i in range(10)
        ]
        path.write_text("\n".join(map(json.dumps, rows)))

    def config(self, method: str, *parts: dict[str, Any], kind: str = "image", **tables: Any) -> dict[str, Any]:
        streams = {
            "image": {"name": "digits", "classes_per_task": 5, "train_limit": 15, "test_limit": 10},
            "text": {"name": "texts", "train": str(self.folder / "texts.jsonl"), "classes_per_task": 2},
        }
        small = {
            "method": method,
            "model": {"name": str(self.folder / kind)},
            "stream": streams[kind],
            "adapter": {"rank": 2} if method not in ("finetune", "linear-probe") else {},
            "strategy": list(parts),
            "train": {
                "steps": 2,
                "batch_size": 4,
                "lr": 1e-2,
                "device": "cpu",
                "threads": 1,
                "snapshot_seconds": 0,
                "log_every": 1,
            },
        }
        return merged(small, tables)

    def learner(self, method: str, *parts: dict[str, Any], **tables: Any) -> Learner:
        return learner_of(*resolve(self.config(method, *parts, **tables)))

    def run(self, out: Path, method: str, *parts: dict[str, Any], watch: Watch | None = None, **tables: Any) -> Path:
        rankwise.run(self.config(method, *parts, **tables), out=out, watch=watch)
        return out

    def in_sittings(self, out: Path, method: str, *parts: dict[str, Any], **tables: Any) -> Path:
        """Run with a stop at every second step, so that each step is done after a resumption."""
        with contextlib.suppress(Stop):
            self.run(out, method, *parts, watch=Stopping(2), **tables)
        finish(out)
        return out


def begin(learner: Learner, task: Task) -> Task:
    """Begin a task and its first phase, as the loop does."""
    learner.begin_task(task)
    phase = learner.next_phase(task, [])
    assert phase is not None
    learner.enter_phase(phase)
    learner.model.train()
    return task


def terms_of(learner: Learner, task: Task, number: int, at: int = 0) -> list[Term]:
    """Return the terms of step `number` of the run, which is step `at` of the task."""
    return _terms(learner, task, learner.loader(task).batch(at), number)


def steps(learner: Learner, task: Task, count: int, start: int = 0) -> Iterator[int]:
    """Take `count` steps on a task, and pause after each with its number."""
    for i in range(count):
        step(learner, terms_of(learner, task, start + i, i), start + i, 1.0)
        yield start + i


def learn(learner: Learner, tasks: int, count: int = 3) -> int:
    """Learn the first tasks, `count` steps each; return the steps done."""
    done = 0
    for task in learner.curriculum[:tasks]:
        begin(learner, task)
        done += len(list(steps(learner, task, count, done)))
        learner.end_phase()
        learner.end_task(task)
    return done


def values(learner: Learner) -> dict[str, Tensor]:
    """Return a copy of what learns in the model, by name."""
    return {n: p.detach().clone() for n, p in learner.model.named_parameters() if p.requires_grad}


def events(out: Path, kind: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "time"} for line in lines if line["event"] == kind]


def ends(out: Path) -> list[dict[str, Tensor]]:
    """Return the tensors of the snapshot at the end of each task."""
    folders = sorted((out / "checkpoints").glob("step-*"))
    kept = [folder for folder in folders if json.loads((folder / "state.json").read_text())["kept"]]
    return [load_file(str(folder / "state.safetensors")) for folder in kept]


def left(out: Path) -> dict[str, Any]:
    """Return everything that must not depend on when a run was stopped."""
    newest = sorted((out / "checkpoints").glob("step-*"))[-1]
    return {
        "matrix": (out / "matrix.csv").read_text(),
        "steps": events(out, "step"),
        "adapter": {file.name: file.read_bytes() for file in sorted((out / "adapter").iterdir())},
        "state": (newest.name, (newest / "state.safetensors").read_bytes()),
    }


def same(one: dict[str, Tensor], other: dict[str, Tensor], names: Sequence[str] | None = None) -> bool:
    """Say whether two tables of tensors are equal bit for bit."""
    keys = one if names is None else names
    return (names is not None or one.keys() == other.keys()) and all(torch.equal(one[key], other[key]) for key in keys)
