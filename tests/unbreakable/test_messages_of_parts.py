"""Errors of methods, tasks, sweeps and reports, in full: each says what is wrong, where, and what to do."""

from __future__ import annotations

import io
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import rankwise
from rankwise import papers, saved, tensors
from rankwise.adapters import Change, grow
from rankwise.api import resolve
from rankwise.errors import ConflictError, DataError, RankwiseError, StorageError, UsageError
from rankwise.learning.intervals import bootstrap_interval
from rankwise.learning.metrics import mean_interval
from rankwise.learning.recipe import check_phases
from rankwise.reporting.compare import check_baseline
from rankwise.reporting.formats import check_plot
from rankwise.strategies.base import Phase
from rankwise.streams.sources import read
from rankwise.sweeping import make_plan, parse_grid


def adapted() -> nn.Module:
    return rankwise.adapt(nn.Sequential(nn.Linear(3, 2)), "lora", rank=2)


def config_of(method: str, **settings: Any) -> Callable[[], object]:
    return lambda: resolve({"method": method, "adapter": settings})


SAID: dict[str, Callable[[], object]] = {
    "select: position 9 is not on axis 'rank', which has 2": lambda: grow(
        adapted(), [Change("select", index=(0, 9))], 0
    ),
    "phases take [0.5] of a task's steps; the shares must sum to 1": lambda: check_phases([Phase("half", 0.5)]),
    "level = 95; give a share between 0 and 1, e.g. 0.95": lambda: bootstrap_interval([1.0, 2.0], 95),
    "mean_interval: level = 0; give a share between 0 and 1, e.g. 0.95": lambda: mean_interval([1.0, 2.0], 0),
    "initial + final must stay below 1": config_of("adalora", dynamics={"initial": 0.6, "final": 0.5}),
    "a.pdf: cannot write a plot as '.pdf'; did you mean '.png'? (known: .png, .svg)": lambda: check_plot(Path("a.pdf")),
    "--grid 'train.lr=logg(1, 2, 3)': 'logg' is no range; did you mean 'log'?": lambda: parse_grid(
        ["train.lr=logg(1, 2, 3)"], 0
    ),
}


@pytest.mark.parametrize("said", SAID)
def test_calls(said: str) -> None:
    with pytest.raises(RankwiseError) as caught:
        SAID[said]()
    assert said in str(caught.value)


def test_keys_that_no_grid_holds(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text('method = "lora"\n')
    with pytest.raises(UsageError, match=r"--grid seed=\.\.\.: use --seeds; the grid holds settings that are picked"):
        make_plan(tmp_path / "a.toml", {"seed": [1]})


def test_a_base_of_pictures_and_a_stream_of_texts(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"input": "a cat", "target": "b"}\n{"input": "a dog", "target": "c"}\n' * 4)
    stream = {"name": "texts", "train": str(tmp_path / "a.jsonl")}
    said = "model 'embedded:vit' reads image, stream 'texts' holds text; change one of them"
    with pytest.raises(UsageError, match=said):
        rankwise.run({"method": "lora", "stream": stream, "model": {"name": "embedded:vit"}}, out=tmp_path / "run")


def test_modules_of_methods(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "empty_methods.py").touch()
    (tmp_path / "taken_methods.py").write_text("from rankwise.papers.lora import METHOD\n")
    with pytest.raises(UsageError, match="'empty_methods' holds no METHOD and no METHODS; bind a rankwise.learning"):
        papers.add("empty_methods")
    said = "'taken_methods' holds a method 'lora', which there is already; give it another slug"
    with pytest.raises(ConflictError, match=said):
        papers.add("taken_methods")
    assert not papers.added()


def test_too_many_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensors, "MAX_TENSORS", 1)
    with pytest.raises(StorageError, match=r"2 tensors do not fit in one file \(at most 1\); split them"):
        tensors.save_tensors({name: torch.zeros(1) for name in "ab"})


def test_data_that_holds_nothing_or_another_format(tmp_path: Path) -> None:
    import datasets

    datasets.DatasetDict({}).save_to_disk(str(tmp_path / "it"))
    with pytest.raises(DataError, match="it: holds no rows; save it again"):
        read("it", root=tmp_path)
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.zeros(2), version=(3, 0))
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("input.npy", buffer.getvalue())
    with pytest.raises(DataError, match=r"not a readable npz file .*\(version \(3, 0\) of the format\); copy it again"):
        read("a.npz", root=tmp_path)


SMALL = {
    "stream": {"classes_per_task": 5, "first_tasks": 1, "train_limit": 8, "test_limit": 8, "validation": 0},
    "train": {"steps": 1, "threads": 1, "device": "cpu"},
}


def test_dynamics_that_need_another_adapter(tmp_path: Path) -> None:
    adapter = {"rank": 2, "dynamics": {"kind": "sema"}}
    said = "dynamics 'sema' and an adapter of form Split: choose the method of that name"
    with pytest.raises(UsageError, match=said):
        rankwise.run({**SMALL, "method": "osft", "adapter": adapter}, out=tmp_path / "run")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one task."""
    out = tmp_path_factory.mktemp("runs") / "one"
    rankwise.run({**SMALL, "method": "lora", "adapter": {"rank": 2}}, out=out)
    return out


def test_a_snapshot_that_is_gone(run: Path, tmp_path: Path) -> None:
    place = Path(shutil.copytree(run, tmp_path / "run"))
    shutil.rmtree(place / "checkpoints")
    said = rf"{place}: no snapshot of the end of 'digits-1'; `rankwise resume {place}` learns what was not saved again"
    with pytest.raises(StorageError, match=said):
        saved.evaluate(place)


def test_a_baseline_that_no_run_is(run: Path) -> None:
    with pytest.raises(UsageError, match=r"--baseline 'lroa': no such row; did you mean 'lora'\?"):
        check_baseline([run], "lroa")


def test_a_task_that_has_not_ended() -> None:
    model = adapted()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    with rankwise.learning(model, "l2", optimizer=optimizer) as hooks:
        with pytest.raises(UsageError, match=r"task '1' has not ended; call end_task\(\) first"):
            hooks.begin_task("second")
        hooks.end_task()


def test_a_foreign_loop_in_several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    model = adapted()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with rankwise.learning(model, "ewc", optimizer=optimizer, losses=lambda model, batch: batch["x"]) as hooks:
        said = "strategies that look back at the data, and several processes: each sees its own share"
        with pytest.raises(ConflictError, match=said):
            hooks.end_task([{"x": torch.ones(1)}], rows=1)


def test_a_trainer_whose_gradients_stay_scaled() -> None:
    args = SimpleNamespace(deepspeed=None, fsdp="", fp16=True, max_grad_norm=0.0)
    callback = rankwise.LearningCallback("ewc")
    with pytest.raises(ConflictError, match="fp16 and max_grad_norm = 0: gradients are still scaled; use bf16 or clip"):
        callback.on_train_begin(args, None, None, model=adapted())  # pyright: ignore[reportArgumentType]
