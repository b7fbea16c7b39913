"""A run small enough to be done a hundred times: a vision transformer of 16 features, ten digits in two tasks."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from stopping import Stop, Stopping, finish
from transformers import ViTConfig, ViTModel

import rankwise
from rankwise.config import merged
from rankwise.learning.run import Watch
from rankwise.strategies import STRATEGIES, Strategy

sys.path.append(str(Path(__file__).parent))  # for foreign_parts

CLOCKED = ("wall_seconds", "peak_memory_bytes")
"""What may differ between two runs of one config."""


class Copying(Watch):
    """Copies the run's directory whenever it is called: what a kill at that instant would have left."""

    def __init__(self, run: Path, into: Path) -> None:
        self.run, self.into, self.copies = run, into, []

    def stepped(self, done: int, loss: float) -> None:
        self.copies.append(self.into / f"copy-{len(self.copies)}")
        shutil.copytree(self.run, self.copies[-1])

    def scored(self, name: str, scores: Sequence[float | None]) -> None:
        self.stepped(0, 0.0)

    def task(self, index: int, count: int, name: str, steps: int, done: int) -> None:
        self.stepped(0, 0.0)


class Small:
    """Makes small runs and says what they left."""

    def __init__(self, base: Path) -> None:
        self.base = base

    stopping, copying = Stopping, Copying

    def config(self, method: str = "mora", **tables: Any) -> dict[str, Any]:
        small = {
            "method": method,
            "model": {"name": str(self.base)},
            "stream": {"name": "digits", "classes_per_task": 5, "train_limit": 15, "test_limit": 20},
            "train": {
                "steps": 3,
                "batch_size": 4,
                "device": "cpu",
                "threads": 1,
                "snapshot_seconds": 0,
                "log_every": 1,
            },
        }
        return merged(small, tables)

    def run(self, out: Path, method: str = "mora", watch: Watch | None = None, **tables: Any) -> Path:
        rankwise.run(self.config(method, **tables), out=out, watch=watch)
        return out

    def sittings(self, out: Path, method: str, **tables: Any) -> int:
        """Run with a stop at every second step, so that each step is done after a resumption; return the sittings."""
        with contextlib.suppress(Stop):
            self.run(out, method, Stopping(2), **tables)
        return 1 + finish(out)

    def left(self, out: Path) -> dict[str, Any]:
        """Return everything that must not depend on when a run was stopped."""
        results = json.loads((out / "results.json").read_text())
        newest = sorted((out / "checkpoints").glob("step-*"))[-1]
        return {
            "results": {key: value for key, value in results.items() if key not in CLOCKED},
            "matrix": (out / "matrix.csv").read_text(),
            "events": self.events(out),
            "adapter": {file.name: file.read_bytes() for file in sorted((out / "adapter").glob("*.[js]*"))},  # no card
            "state": (newest.name, (newest / "state.safetensors").read_bytes()),
        }

    def events(self, out: Path) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
        return [{key: value for key, value in line.items() if key != "time"} for line in lines]

    def losses(self, out: Path) -> list[float]:
        return [value for line in self.events(out) if line["event"] == "step" for value in line["losses"].values()]

    def tensors(self, snapshot: Path) -> dict[str, torch.Tensor]:
        """Return all tensors of a snapshot."""
        return load_file(snapshot / "state.safetensors")

    def weights(self, out: Path) -> dict[str, torch.Tensor]:
        """Return all tensors of the adapter folder."""
        files = sorted((out / "adapter").glob("*.safetensors"))
        return {f"{file.stem}:{name}": tensor for file in files for name, tensor in load_file(file).items()}


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    """Small runs on a base drawn at random, made once."""
    folder = tmp_path_factory.mktemp("base") / "vit"
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, image_size=8, patch_size=4
    )
    with torch.random.fork_rng():
        torch.manual_seed(7)
        ViTModel(config, add_pooling_layer=False).save_pretrained(folder)
    return Small(folder)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Register the strategies of `foreign_parts`; gives the instances made, by name."""
    import foreign_parts  # pyright: ignore[reportMissingImports]

    instances: dict[str, Any] = {}
    for kind in foreign_parts.KINDS:

        def note(self: Strategy, settings: Any, seed: int, kind: Any = kind) -> None:
            kind.__init__(self, settings, seed)
            instances[kind.name] = self

        watched = type(kind.__name__, (kind,), {"__init__": note})
        monkeypatch.setitem(STRATEGIES, kind.name, watched)  # pyright: ignore[reportArgumentType]
    return instances
