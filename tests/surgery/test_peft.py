"""PEFT's checkpoints: what does not fit is refused by name, and names are compared without running a pattern."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import peft
import pytest
import stock  # pyright: ignore[reportMissingImports]
import tiny  # pyright: ignore[reportMissingImports]
import torch
from peft.utils.other import get_pattern_key
from torch import Tensor

import rankwise
from rankwise.adapters import is_adapted
from rankwise.errors import ConflictError, DataError, RankwiseError
from rankwise.files import load_json
from rankwise.surgery.peft.config import NAME, matches
from rankwise.tensors import load_tensors, save_tensors

QV = ["q_proj", "v_proj"]
pytestmark = pytest.mark.filterwarnings("ignore")


def edited(path: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_tensors(path / "adapter_model.safetensors")
    change(tensors)
    (path / "adapter_model.safetensors").write_bytes(save_tensors(tensors))


Q0 = "base_model.model.model.layers.0.self_attn.q_proj.lora_"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(Q0 + "B.weight"), "has only its A"),
        (lambda t: t.update({Q0 + "magnitude": torch.ones(3)}), "not part of a LoRA of this kind"),
        (lambda t: t.update({Q0 + "A.weight": torch.ones(4, 5)}), "5 -> 12 in the file, 12 -> 12 in this model"),
        (lambda t: t.update({Q0 + "A.weight": torch.ones(3, 12)}), "q_proj"),
        (lambda t: t.update({"base_model.model.x.lora_A.weight": torch.ones(1, 1)}), "'x' has only its A"),
        (lambda t: t.clear(), "holds no tensor"),
    ],
)
def test_weights_that_do_not_fit_are_refused(tmp_path, change, message):
    stock.written("llama", tmp_path, target_modules=QV)
    edited(tmp_path, change)
    base = tiny.llama()
    with pytest.raises(DataError, match=message):
        rankwise.load(base, tmp_path)
    assert not is_adapted(base)


def test_another_model_another_type_and_a_second_adapter_are_refused(tmp_path):
    stock.written("llama", tmp_path, target_modules=QV)
    with pytest.raises(DataError, match="which this model does not have"):
        rankwise.load(tiny.gpt2(), tmp_path)
    model = rankwise.load(tiny.llama(), tmp_path)
    with pytest.raises(ConflictError, match="carries an adapter already"):
        rankwise.load(model, tmp_path)
    peft.IA3Config(target_modules=["q_proj"], feedforward_modules=[]).save_pretrained(tmp_path)
    with pytest.raises(DataError, match="peft_type 'IA3'; only LORA"):
        rankwise.load(tiny.llama(), tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"\0" * 20)
    with pytest.raises(RankwiseError):
        rankwise.load(tiny.llama(), tmp_path)


@pytest.mark.parametrize(
    ("make", "load"),
    [
        (tiny.llama, peft.AutoPeftModelForCausalLM),
        (stock.t5, peft.AutoPeftModelForSeq2SeqLM),
        (lambda: tiny.llama().model, peft.AutoPeftModelForFeatureExtraction),
        (lambda: tiny.llama().model, peft.AutoPeftModel),
        (tiny.MODELS["vit"], peft.AutoPeftModel),
    ],
)
def test_what_leaves_says_how_peft_finds_its_base(tmp_path, make, load):
    base = make()
    base.save_pretrained(tmp_path / "base")
    model = rankwise.adapt(base, rank=2)
    rankwise.export(model, tmp_path / "peft", base_name=str(tmp_path / "base"))
    found = load.from_pretrained(tmp_path / "peft")
    assert type(found.get_base_model()) is type(base)


def test_a_module_of_ones_own_leaves_without_a_name_for_peft(tmp_path):
    rankwise.export(rankwise.adapt(torch.nn.Sequential(torch.nn.Linear(4, 3)), rank=2), tmp_path)
    config = load_json(tmp_path / "adapter_config.json")
    assert config["task_type"] is None and config["auto_mapping"] is None


PATHS = ["layers.0.q_proj", "layers.10.q_proj", "q_proj", "xq_proj", "layers.0.q_proj.x", "layersX0.q_proj", "a-b.q"]
KEYS = [
    *("q_proj", "0.q_proj", "layers.0.q_proj", "^layers.0.q_proj", r"layers\.0\.q_proj", r"^q_proj", "q_proj$", "proj"),
    *("a-b.q", r"a\-b\.q", "q", "^q"),
]


@pytest.mark.parametrize("key", KEYS)
def test_names_match_as_they_do_for_peft(key):
    assert NAME.fullmatch(key)
    assert [matches(key, path) for path in PATHS] == [get_pattern_key([key], path) == key for path in PATHS]


@pytest.mark.parametrize("key", ["(q|v)_proj", ".*", "a+", "[qv]", r"\d", "q?", "a{2}", "", "q|v", "(?i)q"])
def test_other_patterns_are_not_names(key):
    assert not NAME.fullmatch(key)
