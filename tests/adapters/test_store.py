"""An adapter on the disk: bit for bit the same when it comes back, and refused when anything about it is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny
import torch
from torch import nn

import rankwise
from rankwise.adapters import Change, banks_of, grow, is_adapted, store
from rankwise.errors import ConflictError, RankwiseError, StorageError, UsageError
from rankwise.storage import write_folder


def adapted(name: str, method: str = "lora", blocks: int = 1, **settings) -> nn.Module:
    model = rankwise.adapt(tiny.MODELS[name](), method, rank=2, **settings)
    for number in range(1, blocks):
        grow(model, [Change("freeze"), Change("append", f"t{number}", number + 1)], 0)
    tiny.wake(model)
    return model


def structure(model: nn.Module) -> tuple:
    live = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    return live, [(site, bank.blocks) for site, bank in banks_of(model).values()]


def rewritten(path: Path, change) -> Path:
    """The same folder with another record, and a manifest that agrees with it."""
    record = json.loads((path / "adapter.json").read_text())
    change(record)
    files = {
        "adapter.json": json.dumps(record).encode(),
        "adapter.safetensors": (path / "adapter.safetensors").read_bytes(),
    }
    write_folder(path, files, kind=store.KIND)
    return path


@pytest.mark.parametrize(
    ("name", "method", "blocks", "settings"),
    [
        ("llama", "lora", 1, {"scale": 0.3}),
        ("llama", "lora-append", 3, {"scale": 1 / 3, "layers": [0, 0]}),
        ("llama", "mora", 3, {"gate": {"top_k": 2, "threshold": 0.1, "temperature": 0.5}}),
        ("llama", "mora", 2, {"gate": {"router": "linear"}, "sites": "q_proj"}),
        ("gpt2", "lora", 2, {"dropout": 0.1}),
        ("vit", "mora", 2, {"init": "orthogonal"}),
        ("bert", "lora", 1, {"sites": ["word_embeddings", "query"]}),
        ("mixed", "lora", 2, {"sites": ["words", "conv", "fc"]}),
    ],
)
def test_what_is_loaded_computes_the_same_bits(tmp_path, name, method, blocks, settings):
    model, batch = adapted(name, method, blocks, **settings), tiny.fed(name)
    rankwise.save(model, tmp_path / "a")
    other = rankwise.load(tiny.MODELS[name](), tmp_path / "a")
    for training in (False, True):
        torch.manual_seed(0)
        expected = tiny.logits(model.train(training), batch)
        torch.manual_seed(0)
        assert torch.equal(tiny.logits(other.train(training), batch), expected)
    assert structure(other) == structure(model)
    rankwise.save(other, tmp_path / "b")
    for file in ("adapter.json", "adapter.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_a_loaded_adapter_grows_on(tmp_path):
    rankwise.save(adapted("mlp", blocks=2), tmp_path / "a")
    model = rankwise.load(tiny.mlp(), tmp_path / "a")
    grow(model, [Change("append", "t9", 1)], 0)
    with pytest.raises(UsageError, match="exists already"):
        grow(model, [Change("append", "t1", 1)], 0)


def test_another_base_is_refused(tmp_path):
    rankwise.save(adapted("mlp"), tmp_path / "a")
    other = tiny.mlp()
    with torch.no_grad():
        next(other.parameters())[0, 0] += 1e-6
    with pytest.raises(StorageError, match="learnt on a base with fingerprint"):
        rankwise.load(other, tmp_path / "a")
    assert not is_adapted(other)
    with pytest.raises(ConflictError, match="carries an adapter already"):
        rankwise.load(adapted("mlp"), tmp_path / "a")


@pytest.mark.parametrize("file", ["adapter.json", "adapter.safetensors", "manifest.json"])
@pytest.mark.parametrize("harm", ["cut", "flip first", "flip middle", "flip last", "gone"])
def test_a_damaged_file_is_refused_by_name(tmp_path, file, harm):
    rankwise.save(adapted("mlp"), tmp_path / "a")
    path = tmp_path / "a" / file
    data = bytearray(path.read_bytes())
    if harm == "cut":
        path.write_bytes(data[:-1])
    elif harm == "gone":
        path.unlink()
    else:
        data[{"first": 0, "middle": len(data) // 2, "last": -1}[harm.split()[1]]] ^= 1
        path.write_bytes(data)
    base = tiny.mlp()
    with pytest.raises(StorageError, match="manifest" if harm == "gone" or file == "manifest.json" else file):
        rankwise.load(base, tmp_path / "a")
    assert not is_adapted(base)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r["branch"]["gate"].update(topk=3), "unknown key 'topk'; did you mean 'top_k'"),
        (lambda r: r["branch"]["gate"].update(top_k="3"), "top_k = '3'"),
        (lambda r: r["branch"].update(scael=3), "unknown key 'scael'; did you mean 'scale'"),
        (lambda r: r.update(method="mroa"), "did you mean 'mora'"),
        (lambda r: r.update(format=2), "format 2, this version reads 1"),
        (lambda r: r.pop("method"), "'method' is missing"),
        (lambda r: r.update(sites={}), "'sites' is missing or no list"),
        (lambda r: r["sites"][0].update(name="9"), "adapts '9', which this model does not have"),
        (lambda r: r["sites"][0].update(n_in=6), r"'0' is \['linear', 6, 7\] in the file"),
        (lambda r: r["sites"][1]["blocks"][0].update(size=3), r"live\.A: length 2 .* the blocks say 3"),
        (lambda r: r["sites"][0].update(blocks=[]), "the blocks say 0"),
    ],
)
def test_a_record_that_does_not_fit_is_refused_and_the_base_stays_bare(tmp_path, change, message):
    rankwise.save(adapted("mlp", "mora"), tmp_path / "a")
    base = tiny.mlp()
    with pytest.raises(RankwiseError, match=message):
        rankwise.load(base, rewritten(tmp_path / "a", change))
    assert not is_adapted(base)


def test_tensors_of_another_shape_are_refused(tmp_path):
    from rankwise.tensors import load_tensors, save_tensors

    rankwise.save(adapted("mlp"), tmp_path / "a")
    tensors = load_tensors(tmp_path / "a" / "adapter.safetensors")
    tensors["0/live.A"] = torch.zeros(2, 6)
    record = (tmp_path / "a" / "adapter.json").read_bytes()
    files = {"adapter.json": record, "adapter.safetensors": save_tensors(tensors)}
    write_folder(tmp_path / "a", files, kind=store.KIND)
    with pytest.raises(StorageError, match=r"0/live\.A: shape \(2, 6\)"):
        rankwise.load(tiny.mlp(), tmp_path / "a")


def test_a_folder_without_an_adapter_is_refused(tmp_path):
    write_folder(tmp_path / "a", {"head.json": b"{}"}, kind=store.KIND)
    with pytest.raises(StorageError, match="holds no adapter"):
        rankwise.load(tiny.mlp(), tmp_path / "a")
    with pytest.raises(StorageError):
        rankwise.load(tiny.mlp(), tmp_path / "nowhere")
