"""Errors of files, bases and saved parts that no other test provokes, each in full, from the part that raises it."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import datasets
import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import rankwise
from rankwise import demo, saved, storage, tensors
from rankwise.adapters import Bank, Site, Spec, banks_of, edits, pick_sites, spectrum, store
from rankwise.adapters.bank import BLOCK
from rankwise.adapters.edits import read_weight
from rankwise.adapters.inits import KAIMING
from rankwise.api import learner_of, resolve
from rankwise.config import ClassifySettings, TrainSettings, load_config
from rankwise.errors import ConflictError, DataError, RankwiseError, StorageError, UsageError
from rankwise.learning.recipe import check_base
from rankwise.learning.run import Watch
from rankwise.learning.trainer import _refuse_unfit
from rankwise.models import embedded, packed
from rankwise.models.sources import read_config
from rankwise.objectives import Classify
from rankwise.papers import method
from rankwise.streams.digests import file_sha256
from rankwise.streams.images import _file_bytes
from rankwise.streams.rows import Rows
from rankwise.streams.scenarios import Domain, _chunks, domain_incremental
from rankwise.streams.sources import read
from rankwise.surgery.peft.writing import _beside
from rankwise.tensors import save_tensors

Call = Callable[[Path], object]


def cut_short(place: Path) -> None:
    """Read ten bytes of a file that another process cut to four after its size was taken."""
    (place / "t.safetensors").write_bytes(b"1234")
    with io.FileIO(place / "t.safetensors") as file:
        tensors._fill(memoryview(bytearray(10)), file, place / "t.safetensors")


def run_folder(place: Path, text: str = 'method = "lora"\n') -> Path:
    (place / "run").mkdir()
    (place / "run" / "config.toml").write_text(text)
    return place / "run"


def other_weights(place: Path) -> None:
    storage.write_folder(place / "a", {"base.safetensors": save_tensors({"layer": torch.zeros(2, 3)})}, kind=store.KIND)
    saved.learnt(place / "a", base="embedded:vit")


def without_config(place: Path) -> None:
    (place / "model.safetensors").write_bytes(save_tensors({"w": torch.zeros(1)}))
    read_config(place, False)


def wrong_spectrum(place: Path) -> None:
    weight = torch.eye(3)
    spectrum.spectrum(weight, str(place))
    (file,) = place.glob("*.safetensors")
    file.write_bytes(save_tensors({"u": torch.eye(2), "s": torch.ones(2), "vh": torch.eye(2)}))
    spectrum.spectrum(weight, str(place))


def square(place: Path) -> None:
    bank = Bank({"A": Spec(("rank", "in"), "down"), "M": Spec((BLOCK, "rank", "rank"), "core")}, "rank")
    bank.append("one", {"A": torch.zeros(3, 2), "M": torch.zeros(3, 3)})
    bank.select(torch.tensor([0]))


def foreign_tensor(place: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 2))
    (site,) = pick_sites(model, ["0"])
    adapted = rankwise.adapt(model, "lora", rank=2)
    ((_, bank),) = banks_of(adapted).values()
    store._check_shapes(site, bank, {"live.w": torch.zeros(2)})


def not_of_this_run(place: Path) -> None:
    learner_of(*resolve({"method": "lora", "train": {"steps": 1}})).restore({}, {})


def beside_the_mlp(place: Path) -> None:
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    model = rankwise.adapt(LlamaForCausalLM(LlamaConfig(vocab_size=9, **sizes)), "lora", rank=2, sites="mlp-span")
    rankwise.export(model, place / "out")


def nothing_to_test(place: Path) -> None:
    rows = Rows(["a", "b"], ["x", "y"], torch.arange(2), "text", "rows.csv")
    domain_incremental([Domain("shop", rows, rows.take([]))], seed=0)


BESIDE = Site("head", "head", "linear", 3, 2, reads="body")
CONV = Site("conv", "conv", "conv2d", 4, 2, kernel=(1, 2, 2))

SAID: dict[str, tuple[type[RankwiseError], Call]] = {
    "t.safetensors: ended while being read; another process cut it": (StorageError, cut_short),
    "--base 'embedded:vit': a run knows its base ('embedded:vit'); leave it out": (
        UsageError,
        lambda place: saved.learnt(run_folder(place), base="embedded:vit"),
    ),
    "is not finished, so it left no adapter; `rankwise resume": (
        UsageError,
        lambda place: saved.learnt(run_folder(place)),
    ),
    "is None in the file and": (StorageError, other_weights),
    "holds a run with other settings; choose another --out": (
        UsageError,
        lambda place: demo._learnt({"method": "mora"}, run_folder(place), Watch()),
    ),
    "cannot be read: Is a directory": (UsageError, load_config),
    'objective.head = "names" needs an embedding of the class names; use head = "cosine"': (
        DataError,
        lambda place: Classify(ClassifySettings(head="names"), 4, 0),
    ),
    "'body.out' is adapted, and PEFT would take it for ['out']; exclude it": (
        UsageError,
        lambda place: _beside({"out.weight": torch.zeros(1)}, {}, ["body.out"]),
    ),
    "no config.json; give a folder in the Hugging Face layout": (DataError, without_config),
    "base 'embedded:vti': no such base; did you mean 'vit'?": (UsageError, lambda place: embedded.load("vti")),
    "rows.csv: cannot read the file (No such file or directory); check the path": (
        DataError,
        lambda place: file_sha256(place / "rows.csv"),
    ),
    "row 3: cannot read the picture (No such file or directory); restore the file": (
        DataError,
        lambda place: _file_bytes(place / "3.png", "row 3"),
    ),
    "stream 'birds': classes_per_task = 0; give at least 1": (DataError, lambda place: _chunks([1, 2], 0, "birds")),
    "train.shard_base and model.quantize: 4-bit weights cannot be spread; remove one of them": (
        ConflictError,
        lambda place: check_base(method("lora"), KAIMING, (), TrainSettings(shard_base=True), "nf4"),
    ),
    "a model cut over processes (deepspeed, fsdp): each process sees a part": (
        ConflictError,
        lambda place: _refuse_unfit(SimpleNamespace(deepspeed="zero.json")),  # pyright: ignore[reportArgumentType]
    ),
    "a snapshot that is not of this run: ": (StorageError, not_of_this_run),
    "'head': it stands beside 'head' and reads elsewhere, so it has no weight": (
        UsageError,
        lambda place: read_weight(nn.Linear(3, 2), BESIDE),
    ),
    "'conv': the weight of a quantised module of kind conv2d cannot be read": (
        UsageError,
        lambda place: read_weight(nn.Identity(), CONV),
    ),
    "edit of 'layer.1', which is no site of this model": (
        UsageError,
        lambda place: edits.replay(nn.Sequential(nn.Linear(3, 2)), {"layer.1/0.B": torch.zeros(1)}),
    ),
    "select: 'M' has one entry a block, which cannot lose single positions": (UsageError, square),
    "no block 'two' here": (
        UsageError,
        lambda place: Bank({"A": Spec(("rank", "in"), "down")}, "rank").positions("two"),
    ),
    "holds no decomposition of a weight [3, 3]; delete it": (StorageError, wrong_spectrum),
    "'model.layers.0.mlp.down_proj.span' reads the input of another module, which no LoRA of PEFT does": (
        UsageError,
        beside_the_mlp,
    ),
    "task 'shop': test has no rows; give it data or leave the task out": (DataError, nothing_to_test),
    "0/live.w: not a tensor of this adapter": (UsageError, foreign_tensor),
}


@pytest.mark.parametrize("said", SAID)
def test_calls(said: str, tmp_path: Path) -> None:
    kind, call = SAID[said]
    with pytest.raises(kind) as caught:
        call(tmp_path)
    assert said in str(caught.value)


def test_a_base_in_four_bits_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {name: values[0] for name, values in packed.SETTINGS.items()}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"config.json: the weights are in 4 bits, which needs bitsandbytes; pip inst"):
        packed.check_settings(Path("config.json"), settings)


def test_a_folder_that_never_holds_still(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def gone(folder: Path, kind: str) -> None:
        raise FileNotFoundError(folder)

    monkeypatch.setattr(storage, "_verified_unless_replaced", gone)
    with pytest.raises(StorageError, match="was replaced again and again while being read; stop the process that wr"):
        storage.read_folder(tmp_path, kind="adapter")


def test_a_streamed_data_set(monkeypatch: pytest.MonkeyPatch) -> None:
    held = datasets.IterableDataset.from_generator(lambda: iter([{"input": "a", "target": 0}]))
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: held)
    with pytest.raises(DataError, match="a/b: streamed data sets have no length; choose one that"):
        read("hub:a/b")
