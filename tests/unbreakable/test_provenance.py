"""Every artefact says where it comes from, another base is refused, and no byte of a saved file changes unnoticed."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import rankwise
from rankwise import provenance, saved
from rankwise.adapters import store
from rankwise.errors import RankwiseError, StorageError
from rankwise.models import fingerprint
from rankwise.storage import CARD, read_folder

FLIPS = int(os.environ.get("RANKWISE_FLIPS", "300"))
"""Bits flipped, spread over the files; more on demand."""
CONFIG: dict[str, Any] = {
    "method": "lora",
    "stream": {"classes_per_task": 5, "train_limit": 8, "test_limit": 8, "validation": 0},
    "adapter": {"rank": 2, "sites": ["q_proj"]},
    "train": {"steps": 1, "threads": 1, "device": "cpu"},
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one step a task, and what is made of it: a checkpoint of PEFT and a merged model."""
    folder = tmp_path_factory.mktemp("made")
    rankwise.run(CONFIG, out=folder / "run")
    saved.export_saved(folder / "run", folder / "peft")
    saved.merge_saved(folder / "run", folder / "merged")
    rankwise.save(loaded(folder / "run" / "adapter"), folder / "again")
    return folder


def base() -> nn.Module:
    from rankwise.models import load_backbone

    return load_backbone("embedded:vit").module


def loaded(path: Path) -> nn.Module:
    return rankwise.load(base(), path)


@pytest.mark.parametrize("name", ["run/adapter", "peft", "merged", "again"])
def test_every_artefact_carries_base_data_parents_and_code(made: Path, name: str) -> None:
    found = provenance.of(made / name)
    environment = json.loads((made / "run" / "environment.json").read_text())
    assert found["base"]["fingerprint"] == environment["base"]["fingerprint"] == fingerprint(base())
    assert found["data"] == [provenance.data_of(environment["stream"])]
    assert found["code"] == provenance.code() and len(found["code"]["source"]) == 64
    assert found["parents"] == ([] if name == "run/adapter" else [provenance.digest(made / "run" / "adapter")])


def test_a_base_that_learnt_says_so_too(tmp_path: Path) -> None:
    run = rankwise.run({**CONFIG, "method": "finetune", "adapter": {}}, out=tmp_path / "run")
    found = provenance.of(run.path / "adapter")
    assert found["base"]["name"] == "embedded:vit" and len(found["data"]) == 1


def test_data_is_known_by_content_not_by_the_name_of_its_file(tmp_path: Path) -> None:
    from rankwise.streams.building import build_stream

    def hashed(name: str, rows: list[tuple[str, str]]) -> str:
        lines = [json.dumps({"input": text, "target": label}) for text, label in rows]
        (tmp_path / name).write_text("\n".join(lines))
        settings = {"name": "x", "train": str(tmp_path / name), "classes_per_task": 2}
        return provenance.data_of(build_stream(settings, seed=0).record)

    rows = [(f"text {i}", "ab"[i % 2]) for i in range(20)]
    first = hashed("one.jsonl", rows)
    assert hashed("two.jsonl", rows) == first
    assert hashed("two.jsonl", [("text x", "a"), *rows[1:]]) != first
    assert hashed("two.jsonl", rows[::-1]) != first


def tiny(width: int = 6, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    layers = nn.ModuleDict({"up": nn.Linear(width, 8), "norm": nn.BatchNorm1d(8), "down": nn.Linear(8, 4, bias=False)})
    return layers.requires_grad_(False).eval()


def changed(change: Callable[[nn.Module], object]) -> nn.Module:
    model = tiny()
    with torch.no_grad():
        change(model)
    return model


def element(name: str, place: int) -> Callable[[nn.Module], object]:
    """Change one element of one tensor by its last bit."""

    def change(model: nn.Module) -> None:
        value = model.state_dict()[name].view(-1)
        old = value[place]
        value[place] = torch.nextafter(old, torch.tensor(9.0)) if value.is_floating_point() else old + 1

    return change


def other_bases() -> Mapping[str, nn.Module]:
    """Bases that are not `tiny()`: 30 and more, most of them of the same names and shapes."""
    norm = [f"norm.{name}" for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")]
    names = ["up.weight", "up.bias", "down.weight", *norm]
    made = {f"{name}[{i}]": changed(element(name, i)) for name in names for i in (0, -1)}
    made |= {f"revision {seed}": tiny(seed=seed) for seed in range(1, 6)}
    made |= {f"{kind}": tiny().to(kind) for kind in (torch.float64, torch.bfloat16, torch.float16)}
    made["scaled by 1"] = changed(lambda m: m["up"].weight.mul_(1.0000001))
    made["rows swapped"] = changed(lambda m: m["up"].weight.copy_(m["up"].weight.flip(0)))
    made["zeros"] = changed(lambda m: m["down"].weight.zero_())
    made["sign of zero"] = changed(lambda m: m["norm"].bias.neg_())
    made["wider"] = tiny(width=7)
    made["with a bias"] = changed(lambda m: m.update({"down": nn.Linear(8, 4)}))
    made["without a bias"] = changed(lambda m: m["up"].register_parameter("bias", None))
    made["another name"] = changed(lambda m: m.update({"side": m.pop("down")}))
    made["one more layer"] = changed(lambda m: m.update({"more": nn.Linear(2, 2)}))
    made["no norm"] = changed(lambda m: m.pop("norm"))
    return made


def test_thirty_other_bases_are_refused_and_left_bare(tmp_path: Path) -> None:
    others = other_bases()
    assert len(others) >= 30
    model = rankwise.adapt(tiny(), "lora", rank=2)
    rankwise.save(model, tmp_path / "ours")
    rankwise.export(model, tmp_path / "peft")
    for folder in (tmp_path / "ours", tmp_path / "peft"):
        rankwise.load(tiny(), folder)
        for name, other in others.items():
            before = fingerprint(other)
            with pytest.raises(StorageError, match="learnt on a base with fingerprint .*; load the same weights"):
                rankwise.load(other, folder)
            assert fingerprint(other) == before, name


def test_a_merge_refuses_another_base(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rankwise.models import load_backbone

    other = tmp_path / "other"
    load_backbone("embedded:vit").module.save_pretrained(other)
    weights = bytearray((other / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (other / "model.safetensors").write_bytes(weights)
    with pytest.raises(StorageError, match="learnt on a base"):
        saved.merge_saved(made / "run" / "adapter", tmp_path / "new", base=str(other))
    assert not (tmp_path / "new").exists()


def opened(kind: str, folder: Path) -> None:
    """Open an artefact as its users do, as far as its files are read."""
    if kind == "snapshot":
        read_folder(folder, kind="snapshot")
    elif kind == "adapter":
        store.read(folder)
    else:
        rankwise.surgery.peft.origin(folder)


def test_no_byte_of_a_saved_file_changes_unnoticed(made: Path, tmp_path: Path) -> None:
    """One bit of one byte of one file, drawn by a fixed seed; `README.md` is for people and may be edited."""
    import rankwise.surgery.peft

    assert rankwise.surgery.peft.origin(made / "peft")
    snapshot = sorted((made / "run" / "checkpoints").iterdir())[-1]
    kinds = {"adapter": made / "run" / "adapter", "snapshot": snapshot, "peft": made / "peft"}
    copies = {kind: Path(shutil.copytree(folder, tmp_path / kind)) for kind, folder in kinds.items()}
    for kind, folder in copies.items():
        opened(kind, folder)
    rng, missed = random.Random(12), []
    files = [(kind, file) for kind, folder in copies.items() for file in sorted(folder.iterdir()) if file.name != CARD]
    assert len(files) >= 10
    for number in range(FLIPS):
        kind, file = files[number % len(files)]
        whole = file.read_bytes()
        place, bit = rng.randrange(len(whole)), rng.randrange(8)
        file.write_bytes(whole[:place] + bytes([whole[place] ^ (1 << bit)]) + whole[place + 1 :])
        try:
            opened(kind, file.parent)
            missed.append(f"{kind}/{file.name}: bit {bit} of byte {place}")
        except RankwiseError as error:
            assert str(file.parent) in str(error)
        finally:
            file.write_bytes(whole)
    assert not missed, missed
