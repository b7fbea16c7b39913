"""A stream of domains of small images on a small random transformer, and the learner of a method on it.

An image of domain d and class c is 128 + 70 D_d + 14 C_c + 10 noise on 8 x 8 pixels, D and C patterns of +-1: classes
differ little, domains much. Tasks: A, B, A', B', C (a dash: other classes on the same domain), two classes each.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import ViTConfig, ViTModel

from rankwise.api import branch_of, parts_of, resolve
from rankwise.config import merged
from rankwise.learning.learner import Learner
from rankwise.learning.ledger import Ledger
from rankwise.learning.processes import Processes
from rankwise.learning.run import Progress, Watch, run
from rankwise.models import load_backbone
from rankwise.objectives import OBJECTIVES
from rankwise.seeds import generator
from rankwise.streams import Split, Stream, Task

ORDER = ("A", "B", "A'", "B'", "C")


def base(folder: Path) -> Path:
    """Write the transformer (3 blocks of 32 features) to `folder`."""
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 48,
    }
    with torch.random.fork_rng():
        torch.manual_seed(3)
        config = ViTConfig(**sizes, image_size=8, patch_size=4, initializer_range=0.15)
        ViTModel(config, add_pooling_layer=False).save_pretrained(folder)
    return folder


def images(domain: str, label: int, count: int, part: str, seed: int) -> Tensor:
    """Draw uint8 images [count, 8, 8]."""
    pattern = torch.randn(8, 8, generator=generator(seed, "domain", domain[0])).sign()
    mark = torch.randn(8, 8, generator=generator(seed, "class", label)).sign()
    noise = torch.randn(count, 8, 8, generator=generator(seed, domain, label, part))
    return (128 + 70 * pattern + 14 * mark + 10 * noise).clamp(0, 255).round().to(torch.uint8)


def task(index: int, domain: str, rows: dict[str, int], seed: int) -> Task:
    """Make one task of two new classes; `rows` says how many rows a class each split has."""
    classes = (2 * index, 2 * index + 1)

    def split(part: str) -> Split:
        drawn = torch.cat([images(domain, c, rows[part], part, seed) for c in classes])
        labels = torch.tensor(classes).repeat_interleave(rows[part])
        return Split(drawn, labels, torch.arange(len(labels)))

    return Task(domain, index, classes, split("train"), split("validation"), split("test"))


def stream(order: tuple[str, ...] = ORDER, seed: int = 0, **rows: int) -> Stream:
    """Make the stream; rows a class: train 64, validation 16, test 16 unless said otherwise."""
    rows = {"train": 64, "validation": 16, "test": 16, **rows}
    tasks = tuple(task(i, domain, rows, seed) for i, domain in enumerate(order))
    names = tuple(str(c) for c in range(2 * len(order)))
    return Stream("domains", "class-incremental", "image", names, tasks, {"seed": seed})


def learner(folder: Path, method: str, over: Stream, **tables: Any) -> Learner:
    """Put a run together on the transformer in `folder`."""
    train = {"steps": 20, "batch_size": 32, "device": "cpu", "threads": 1, "log_every": 1000, "snapshot_seconds": 1e6}
    given = {"method": method, "model": {"name": str(folder)}, "train": train}
    config, found = resolve(merged(given, tables))
    backbone = load_backbone(**config.model.model_dump())
    objective = OBJECTIVES["classify"].made(config.objective, backbone, over, config.seed)
    parts = parts_of(config, found)
    branch = branch_of(found, config.adapter)
    return Learner(config, found, branch, backbone, over, objective, parts, Processes.start(config.train))


def learn(made: Learner, out: Path, watch: Watch | None = None) -> Progress:
    """Learn the stream from where `out` stands; a `Stop` of the watch ends it early."""
    ledger = Ledger(out)
    with ledger.locked():
        if not (out / "config.toml").is_file():
            ledger.open(made.config, made.stream.record, {"name": "toy", "fingerprint": made.backbone.fingerprint})
        return run(made, ledger, watch or Watch())


def learnt(method: str, over: Stream, **tables: Any) -> tuple[Learner, list[list[float | None]]]:
    """Learn the stream in folders that are thrown away; return the learner as it was left, and R."""
    with tempfile.TemporaryDirectory() as place:
        made = learner(base(Path(place) / "base"), method, over, **tables)
        return made, learn(made, Path(place) / "run").rows
