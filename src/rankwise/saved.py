"""What can be done with a saved run or adapter: see what it learnt, score it, take a task back, merge and export it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rankwise import api
from rankwise.adapters import adapter_of, is_adapted, store
from rankwise.errors import StorageError, UsageError
from rankwise.files import load_json
from rankwise.learning import connectivity, past
from rankwise.learning.ledger import Ledger
from rankwise.models import Backbone, dequantise, fingerprint, load_backbone
from rankwise.storage import MANIFEST, read_folder
from rankwise.surgery.peft import is_peft
from rankwise.surgery.plain import write_plain
from rankwise.tensors import load_tensors

MERGED = {MANIFEST, "adapter.json", "adapter.safetensors", "base.safetensors"}
"""Files of an adapter folder that a merged model takes in; the others (its head) come along as they are."""


def log(path: str | Path) -> list[dict[str, Any]]:
    """Return what the run in `path` learnt and when: a record a task; see `past.history`."""
    ledger = Ledger(Path(path))
    if not (ledger.path / "config.toml").is_file():
        raise StorageError(f"{path}: no run there (config.toml is missing); start one with `rankwise run`")
    return past.history(ledger)


def evaluate(path: str | Path, *, task: str | None = None, data: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Score the run in `path`, as it stood after its last task, on every task or the one named; see `past.scores_now`.

    Raises:
        UsageError: no such task.
        StorageError: no run is there, its last snapshot is damaged, or the base or data have changed.

    """
    ledger, learner = api.reopened(path, data)
    return past.scores_now(learner, ledger, task)


def path(
    run: str | Path, *, tasks: tuple[str, str] | None = None, alphas: int = 11, data: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Score a saved run along the line between its values after two tasks (default: the last two it learnt).

    See `learning.connectivity.measure`; `alphas` points, both ends included.

    Raises:
        UsageError: fewer than two tasks were learnt, no such task, or no weights live from one to the other.
        StorageError: no run is there, a snapshot is gone, or the base or data have changed.

    """
    ledger, learner = api.reopened(run, data)
    learnt_tasks = [record["task"] for record in past.history(ledger)]
    if tasks is None and len(learnt_tasks) < 2:
        raise UsageError(f"{run}: {len(learnt_tasks)} tasks were learnt; a line needs two")
    points = [i / (alphas - 1) for i in range(alphas)]
    return connectivity.measure(learner, ledger, tasks or (learnt_tasks[-2], learnt_tasks[-1]), points)


def undo(path: str | Path, *, data: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Take the run in `path` back to before its last task, bit for bit; `resume` relearns it. See `past.undo`."""
    ledger, learner = api.reopened(path, data)
    with ledger.locked():
        return past.undo(learner, ledger, api.base_record(learner.backbone))


def merge_saved(
    path: str | Path, out: str | Path, *, base: str | None = None, blocks: Sequence[str] | None = None
) -> dict[str, Any]:
    """Write the base of a run, or of a saved adapter, with what was learnt folded in: a plain model of transformers.

    Args:
        path: the folder of a run or of an adapter (ours or PEFT's).
        out: a new folder; the head of a run (head.json, head.safetensors) comes along.
        base: the base of an adapter, as model.name of a config. Default: the one it names.
        blocks: see `rankwise.merge`.

    Returns:
        model (name of the base), out, fingerprint (of the merged weights).

    Raises:
        UsageError: no base is named, or the update cannot be folded in; nothing is written.

    """
    backbone, adapter = learnt(Path(path), base)
    dequantise(backbone.module)
    plain = api.merge(backbone.module, blocks=blocks) if is_adapted(backbone.module) else backbone.module
    others = {} if is_peft(adapter) else read_folder(adapter, kind=store.KIND)
    head = {name: file.read_bytes() for name, file in others.items() if name not in MERGED}
    write_plain(plain, backbone.folder, Path(out), head)
    return {"model": backbone.name, "out": str(out), "fingerprint": fingerprint(plain)}


def export_saved(path: str | Path, out: str | Path, *, to: str = "peft", base: str | None = None) -> dict[str, Any]:
    """Write the adapter of a run, or a saved one, for another program; see `rankwise.export` and `merge_saved`."""
    backbone, _ = learnt(Path(path), base)
    if not is_adapted(backbone.module):
        raise UsageError(f"{path}: the base itself was trained, so there is no adapter to export; `rankwise merge` it")
    method = adapter_of(backbone.module).record["method"]
    api.export(backbone.module, out, to=to, base_name=backbone.name)
    return {"model": backbone.name, "method": method, "out": str(out), "to": to}


def learnt(path: Path, base: str | None = None) -> tuple[Backbone, Path]:
    """Return the base with what `path` (a run's folder, or an adapter's) learnt on it, and the adapter's folder."""
    if (path / "config.toml").is_file():
        config, path = api.resolve(path / "config.toml")[0], path / "adapter"
        if base is not None:
            raise UsageError(f"--base {base!r}: a run knows its base ({config.model.name!r}); leave it out")
        if not path.is_dir():
            raise UsageError(f"{path.parent}: is not finished, so it left no adapter; `rankwise resume {path.parent}`")
        backbone = api.backbone_of(config)
    else:
        named, quantize = _named_base(path) if base is None else (base, None)
        backbone = load_backbone(named, quantize=quantize)
    if (path / "base.safetensors").is_file():
        backbone.module.load_state_dict(load_tensors(read_folder(path, kind=store.KIND)["base.safetensors"]))
    else:
        api.load(backbone.module, path)
    return backbone, path


def _named_base(path: Path) -> tuple[str, str | None]:
    """Return the name of the base that a saved adapter was learnt on, and how it was quantised."""
    peft = is_peft(path)
    record = load_json(path / ("adapter_config.json" if peft else "adapter.json"))
    name = record.get("base_model_name_or_path") if peft else record["base"].get("name")
    if not name:
        raise UsageError(f"{path}: does not name the base it was learnt on; give --base")
    return name, None if peft else record["base"].get("quantize")
