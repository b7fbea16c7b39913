"""What can be done with a saved run or adapter: see what it learnt, score it, take a task back, merge and export it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from rankwise import api, papers, provenance
from rankwise.adapters import Shelf, adapter_of, detach, is_adapted, store, thin_of
from rankwise.cards import LIMITS, USAGE, Card, Learnt, peft_usage
from rankwise.config import load_config
from rankwise.errors import StorageError, UsageError
from rankwise.files import LARGEST_RECORD, load_json
from rankwise.learning import connectivity, past
from rankwise.learning.ledger import Ledger
from rankwise.learning.run import Watch
from rankwise.models import Answers, Backbone, dequantise, fingerprint, load_backbone
from rankwise.reporting.page import left_behind
from rankwise.storage import CARD, MANIFEST, read_folder
from rankwise.surgery.peft import form_named, is_peft
from rankwise.surgery.plain import write_plain
from rankwise.tensors import load_tensors

MERGED = {MANIFEST, provenance.FILE, "adapter.json", "adapter.safetensors", "base.safetensors"}
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


def undo(path: str | Path, *, data: Mapping[str, Any] | None = None, watch: Watch | None = None) -> dict[str, Any]:
    """Take the run in `path` back to before its last task, bit for bit; `resume` relearns it. See `past.undo`."""
    ledger, learner = api.reopened(path, data)
    page = partial(left_behind, ledger.path, watch or Watch())
    with ledger.locked():
        return past.undo(learner, ledger, api.base_record(learner.backbone), page)


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
    base_record = api.base_record(backbone)
    usage = USAGE["merged"].format(name=type(backbone.module).__name__)
    card = _card(backbone, adapter, Path(path), "merged model", "transformers", usage)
    dequantise(backbone.module)
    plain = backbone.module
    if is_adapted(plain):
        with _naming(path, adapter_of(plain).record["method"]):
            plain = api.merge(plain, blocks=blocks)
    others = {} if is_peft(adapter) else read_folder(adapter, kind=store.KIND)
    head = {name: file.read_bytes() for name, file in others.items() if name not in MERGED}
    made = provenance.content(base_record, provenance.of(adapter).get("data", []), [provenance.digest(adapter)])
    write_plain(plain, backbone.folder, Path(out), {**head, provenance.FILE: made, CARD: card.text()})
    return {"model": backbone.name, "out": str(out), "fingerprint": fingerprint(plain)}


def export_saved(path: str | Path, out: str | Path, *, to: str = "peft", base: str | None = None) -> dict[str, Any]:
    """Write the adapter of a run, or a saved one, for another program; see `rankwise.export` and `merge_saved`."""
    backbone, adapter = learnt(Path(path), base)
    if not is_adapted(backbone.module):
        raise UsageError(f"{path}: the base itself was trained, so there is no adapter to export; `rankwise merge` it")
    method = adapter_of(backbone.module).record["method"]
    card = _card(backbone, adapter, Path(path), "PEFT checkpoint", "peft", peft_usage(api.base_record(backbone)))
    with _naming(path, method):
        api.export(backbone.module, out, to=to, base_name=backbone.name, words=card.text())
    return {"model": backbone.name, "method": method, "out": str(out), "to": to}


def shelf(base: nn.Module, adapters: Mapping[str, str | Path]) -> Shelf:
    """Hold saved plain adapters (of ours or PEFT's) over `base`; each row of a batch takes the one it names.

        held = rankwise.shelf(base, {"law": "adapters/law", "code": "adapters/code"})
        with held.rows(["law", "code", "law", None]):
            base(batch_of_four_rows)

    Raises:
        UsageError: an update depends on the input, or is no product of two thin factors.
        StorageError, DataError, ConflictError: as for `rankwise.load`.

    """
    held = Shelf(base)
    for name, path in adapters.items():
        shelve(held, name, path)
    return held


def shelve(held: Shelf, name: str, path: str | Path) -> None:
    """Add one more saved adapter; it costs what it costs to read it, whatever is held. See `shelf`."""
    api.load(held.base, path)
    try:
        adapter = thin_of(held.base)
    finally:
        detach(held.base)
    held.add(name, adapter)


def _card(backbone: Backbone, adapter: Path, path: Path, kind: str, library: str, usage: str) -> Card:
    """Return the model card of what is made of `backbone` with what the run or adapter in `path` learnt on it."""
    facts, adapted = _facts(path), is_adapted(backbone.module)
    slug = _method(backbone, adapter, facts)
    method = papers.method(slug)
    return Card(
        kind=kind,
        library=library,
        method=slug,
        title=f"{method.title}; {method.paper}",
        base=api.base_record(backbone),
        usage=usage,
        limits=LIMITS if facts else LIMITS[-1:],
        learnt=facts,
        settings=adapter_of(backbone.module).branch.record() if adapted else {},
    )


def _method(backbone: Backbone, adapter: Path, facts: Learnt | None) -> str:
    """Return the method of what was learnt."""
    if is_adapted(backbone.module):
        return adapter_of(backbone.module).record["method"]
    if facts is not None:
        return facts.config["method"]
    if (adapter / "head.json").is_file():
        return load_json(adapter / "head.json")["method"]
    return next(slug for slug in papers.slugs() if papers.method(slug).live == "base")


@contextmanager
def _naming(path: str | Path, method: str) -> Iterator[None]:
    """Name the folder and the method in what is refused: the parts of an adapter know neither."""
    try:
        yield
    except UsageError as error:
        raise UsageError(f"{path}: method {method!r}: {error}") from error


def _facts(path: Path) -> Learnt | None:
    """Return what the run in `path` says of itself; None for the folder of an adapter."""
    if not (path / "results.json").is_file():
        return None
    results, environment = (load_json(path / name, LARGEST_RECORD) for name in ("results.json", "environment.json"))
    return Learnt(load_config(path / "config.toml").model_dump(), environment["stream"], results)


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
        backbone = _named_base(path, base)
    if (path / "base.safetensors").is_file():
        _replace_weights(backbone, path)
    else:
        api.load(backbone.module, path)
    return backbone, path


def _replace_weights(backbone: Backbone, path: Path) -> None:
    """Give the base the weights that a run trained; StorageError where the base is another one."""
    tensors = load_tensors(read_folder(path, kind=store.KIND)["base.safetensors"])
    own = backbone.module.state_dict()
    for name in sorted(own.keys() | tensors.keys()):
        here, there = (list(held[name].shape) if name in held else None for held in (own, tensors))
        if here != there:
            raise StorageError(f"{path}: {name!r} is {there} in the file and {here} in base {backbone.name!r}")
    backbone.module.load_state_dict(tensors)


def _named_base(path: Path, name: str | None) -> Backbone:
    """Load the base called `name`, or else the one that a saved adapter names, with the head it was learnt under."""
    known = _base_of(path)
    chosen = name or known.get("name")
    if not chosen:
        raise UsageError(f"{path}: does not name the base it was learnt on; give --base")
    answers = Answers(known["form"]) if known.get("form") else None
    folder = Path(chosen).expanduser()
    chosen = str(folder.resolve()) if folder.is_dir() else chosen  # what is made of it is read from other places
    return load_backbone(chosen, quantize=None if name else known.get("quantize"), answers=answers)


def _base_of(path: Path) -> Mapping[str, Any]:
    """Return what a saved adapter says of the base it was learnt on: name, form, quantize, as far as it does."""
    if is_peft(path):
        config = load_json(path / "adapter_config.json")
        return {"name": config.get("base_model_name_or_path"), "form": form_named(config)}
    if (path / "adapter.json").is_file():
        return load_json(path / "adapter.json")["base"]
    return provenance.of(path).get("base", {})  # the base itself was trained
