"""What stock PEFT wrote, read: the same bits out, whatever was trained beside the factors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import stock  # pyright: ignore[reportMissingImports]
import torch
from peft import LoraConfig, get_peft_model

import rankwise
from rankwise.adapters import bare, is_adapted
from rankwise.errors import DataError
from rankwise.models import fingerprint
from rankwise.tensors import load_tensors, save_tensors

pytestmark = pytest.mark.filterwarnings("ignore")

QV = ["q_proj", "v_proj"]

PLAIN: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"target_modules": QV}),
    ("qwen", {"target_modules": "all-linear", "use_rslora": True}),
    ("gemma", {"target_modules": QV}),
    ("t5", {"target_modules": ["q", "v", "wo"]}),
    ("gpt2", {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
    ("llama", {"target_modules": QV, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 5}}),
    ("llama", {"target_modules": QV, "rank_pattern": {r".*\.0\..*": 2}}),
    ("llama", {"target_modules": QV, "alpha_pattern": {"layers.1.self_attn.v_proj": 9, "v_proj": 1}}),
    ("llama", {"target_modules": QV, "alpha_pattern": {r"^model\.layers\.1\.self_attn\.q_proj$": 9}}),
    ("llama", {"target_modules": QV, "layers_to_transform": 1, "layers_pattern": "layers"}),
    ("t5", {"target_modules": ["q"], "layers_to_transform": [0], "layers_pattern": ["block"]}),
    ("vit", {"target_modules": r".*\.(0|1)\..*(q_proj|fc1|dense)?_?proj"}),
    ("llama", {"target_modules": r"model\.layers\.\d+\.mlp\.(up|down)_proj"}),
    ("bert", {"target_modules": ["query"], "exclude_modules": r".*layer\.0.*"}),
    ("conv", {"target_modules": ["first", "second", "head"]}),
    ("conv", {"target_modules": ["first", "second"], "use_rslora": True, "bias": "all"}),
    ("dense", {"target_modules": ["conv", "words", "fc"]}),
]

BESIDE: list[tuple[str, dict[str, Any]]] = [
    ("bert", {"target_modules": ["query"], "modules_to_save": ["classifier"]}),
    ("bert", {"target_modules": ["query"], "modules_to_save": ["word_embeddings", "pooler", "LayerNorm"]}),
    ("vit", {"target_modules": ["q_proj", "v_proj"], "modules_to_save": ["classifier"]}),
    ("llama", {"target_modules": QV, "modules_to_save": ["lm_head", "embed_tokens"]}),
    ("tied", {"target_modules": QV, "modules_to_save": ["embed_tokens"]}),
    ("tied", {"target_modules": QV, "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}),
    ("t5", {"target_modules": ["q"], "modules_to_save": ["lm_head"]}),
    ("conv", {"target_modules": ["head"], "modules_to_save": ["norm", "first"]}),
    ("bert", {"target_modules": ["query", "value"], "bias": "lora_only"}),
    ("bert", {"target_modules": ["query"], "bias": "all"}),
    ("gpt2", {"target_modules": ["c_attn"], "fan_in_fan_out": True, "bias": "all"}),
    ("bert", {"target_modules": ["query"], "bias": "all", "modules_to_save": ["classifier"]}),
    ("llama", {"target_modules": QV, "trainable_token_indices": [1, 3]}),
    ("llama", {"target_modules": QV, "trainable_token_indices": {"embed_tokens": [5], "lm_head": [2, 1]}}),
    ("tied", {"target_modules": QV, "trainable_token_indices": [4, 2]}),
    ("llama", {"target_modules": ["embed_tokens", "q_proj"]}),
    ("tied", {"target_modules": ["embed_tokens", "q_proj"]}),
]


@pytest.mark.parametrize(("name", "config"), [*PLAIN, *BESIDE])
def test_a_checkpoint_gives_pefts_bits(tmp_path, name, config):
    expected = stock.written(name, tmp_path, **config)
    assert torch.equal(stock.computed(stock.read(name, tmp_path), name), expected)


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("llama", {"target_modules": "all-linear"}),
        ("llama", {"target_modules": ["q_proj", "embed_tokens"], "use_rslora": True, "rank_pattern": {"q_proj": 2}}),
        ("bert", {"target_modules": ["query", "dense"], "modules_to_save": ["classifier"], "bias": "lora_only"}),
        ("gpt2", {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True}),
        ("t5", {"target_modules": ["q", "wo"], "alpha_pattern": {"wo": 2}}),
        ("vit", {"target_modules": ["q_proj", "v_proj"]}),
        ("conv", {"target_modules": ["first", "second", "head"]}),
        ("dense", {"target_modules": ["conv", "words", "fc"]}),
    ],
)
def test_lengths_are_read_and_written(tmp_path, name, config):
    expected = stock.written(name, tmp_path / "peft", use_dora=True, **config)
    model = stock.read(name, tmp_path / "peft")
    assert float((stock.computed(model, name) - expected).abs().max() / expected.abs().max()) < 2e-6
    rankwise.export(model, tmp_path / "out")
    found = stock.computed(stock.loaded(name, tmp_path / "out"), name)
    assert float((found - expected).abs().max() / expected.abs().max()) < 2e-6


@pytest.mark.parametrize(("name", "config"), BESIDE[:1] + BESIDE[3:9] + BESIDE[-4:])
def test_what_lies_over_the_base_is_part_of_the_adapter(tmp_path, name, config):
    expected = stock.written(name, tmp_path / "peft", **config)
    base = fingerprint(stock.MODELS[name]())
    model = stock.read(name, tmp_path / "peft")
    rankwise.save(model, tmp_path / "own")
    assert torch.equal(stock.computed(stock.read(name, tmp_path / "own"), name), expected)
    rankwise.export(model, tmp_path / "out")
    assert torch.equal(stock.computed(stock.loaded(name, tmp_path / "out"), name), expected)
    assert torch.equal(stock.computed(stock.read(name, tmp_path / "out"), name), expected)
    with bare(model) as under:
        assert fingerprint(under) == base
    assert torch.equal(stock.computed(model, name), expected)


def test_resized_embeddings_come_with_the_checkpoint(tmp_path):
    model: Any = stock.MODELS["llama"]()
    model.resize_token_embeddings(31)
    trained = get_peft_model(model, LoraConfig(target_modules=QV, init_lora_weights=False))
    trained.save_pretrained(str(tmp_path), save_embedding_layers=True)
    fresh: Any = stock.MODELS["llama"]()
    with pytest.raises(DataError, match=r"weight' is \[31, 12\] in the file and \[29, 12\] in this model; resize"):
        rankwise.load(fresh, tmp_path)
    torch.manual_seed(99)
    fresh.resize_token_embeddings(31)
    assert torch.equal(stock.computed(rankwise.load(fresh, tmp_path), "llama"), stock.computed(trained, "llama"))


def changed(path: Path, **values: Any) -> None:
    file = path / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


@pytest.mark.parametrize(
    ("config", "values", "message"),
    [
        ({}, {"lora_bias": True}, "lora_bias = True is not read"),
        ({}, {"target_parameters": ["experts.w"]}, "target_parameters"),
        ({}, {"layer_replication": [[0, 2]]}, "layer_replication"),
        ({}, {"alpha_pattern": {r"(q|v)_proj": 3}}, r"alpha_pattern '\(q\|v\)_proj' is a regular expression"),
        ({}, {"alpha_pattern": {"(a+)+$": 3}}, "is a regular expression, which is never run"),
        ({"trainable_token_indices": [1, 3]}, {"trainable_token_indices": {"other": [1, 3]}}, "names no rows"),
        ({"trainable_token_indices": [1, 3]}, {"trainable_token_indices": [1, 999]}, r"is \[29, 12\] in this model"),
        ({"trainable_token_indices": [1, 3]}, {"trainable_token_indices": [1]}, r"rows \[2, 12\]"),
    ],
)
def test_what_is_not_read_is_refused_by_name(tmp_path, config, values, message):
    stock.written("llama", tmp_path, target_modules=QV, **config)
    changed(tmp_path, **values)
    base = stock.MODELS["llama"]()
    with pytest.raises(DataError, match=message):
        rankwise.load(base, tmp_path)
    assert not is_adapted(base) and fingerprint(base) == fingerprint(stock.MODELS["llama"]())


def test_a_pickled_checkpoint_and_a_foreign_tensor_are_refused(tmp_path):
    stock.written("bert", tmp_path, target_modules=["query"], modules_to_save=["classifier"])
    file = tmp_path / "adapter_model.safetensors"
    tensors = load_tensors(file)
    file.write_bytes(save_tensors(tensors | {"base_model.model.clasifier.weight": torch.ones(2, 2)}))
    with pytest.raises(DataError, match=r"'clasifier\.weight' is no tensor of this model; did you mean 'classifier"):
        stock.read("bert", tmp_path)
    file.rename(tmp_path / "adapter_model.bin")
    with pytest.raises(DataError, match=r"adapter_model\.bin: a pickle, which is never read"):
        stock.read("bert", tmp_path)


def test_a_pattern_in_a_file_is_never_run(tmp_path):
    """This one would take longer than the universe has if anything tried to match it."""
    expected = stock.written("llama", tmp_path, target_modules=QV)
    hostile = r"((a+)+)+b" * 20
    changed(
        tmp_path, target_modules=hostile, exclude_modules=hostile, rank_pattern={hostile: 4}, layers_pattern=hostile
    )
    assert torch.equal(stock.computed(stock.read("llama", tmp_path), "llama"), expected)
