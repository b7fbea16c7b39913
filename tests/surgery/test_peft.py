"""PEFT's checkpoints in and out, against the real peft: the same bits in, the same function out."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import peft
import pytest
import tiny  # pyright: ignore[reportMissingImports]
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn

import rankwise
from rankwise.adapters import Change, banks_of, grow, is_adapted
from rankwise.errors import ConflictError, DataError, RankwiseError, UsageError
from rankwise.tensors import load_tensors, save_tensors

QV = ["q_proj", "v_proj"]


def written(name: str, path: Path, **config: Any) -> Tensor:
    """Let peft write a LoRA with everything drawn at random; return what it computes."""
    torch.manual_seed(7)
    model = get_peft_model(tiny.MODELS[name](), LoraConfig(**{"r": 4, "lora_alpha": 6, **config}))
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if "lora_" in parameter_name:
                parameter.normal_(0, 0.3)
    model.save_pretrained(str(path))
    return tiny.logits(model.eval(), tiny.fed(name))


def read(name: str, path: Path) -> Tensor:
    return tiny.logits(rankwise.load(tiny.MODELS[name](), path), tiny.fed(name))


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("llama", {"target_modules": QV}),
        ("llama", {"target_modules": "all-linear", "lora_alpha": 5, "r": 3}),
        ("llama", {"target_modules": QV, "use_rslora": True}),
        ("llama", {"target_modules": r".*\.1\..*(up|down)_proj", "lora_dropout": 0.1}),
        ("llama", {"target_modules": ["q_proj"], "layers_to_transform": [1]}),
        ("llama", {"target_modules": QV, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 5}}),
        ("llama", {"target_modules": QV, "alpha_pattern": {"^model.layers.1.self_attn.q_proj": 9, "q_proj": 1}}),
        ("llama", {"target_modules": QV, "rank_pattern": {"layers.0.self_attn.q_proj": 3}, "use_rslora": True}),
        ("llama", {"target_modules": ["embed_tokens", "q_proj"]}),
        ("vit", {"target_modules": ["q_proj", "v_proj"]}),
        ("vit", {"target_modules": ["q_proj", "v_proj"], "use_rslora": True, "init_lora_weights": "gaussian"}),
        ("gpt2", {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True}),
        ("bert", {"target_modules": ["query", "word_embeddings"], "bias": "none"}),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_a_peft_checkpoint_gives_its_bits(tmp_path, name, config):
    expected = written(name, tmp_path, **config)
    assert not torch.allclose(expected, tiny.logits(tiny.MODELS[name](), tiny.fed(name)), atol=1e-3)
    assert torch.equal(read(name, tmp_path), expected)


@pytest.mark.filterwarnings("ignore")
def test_a_convolution_gives_pefts_output(tmp_path):
    expected = written("dense", tmp_path, target_modules=["conv", "words", "fc"])
    assert torch.allclose(read("dense", tmp_path), expected, atol=1e-6)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("patterns", [{}, {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 5}}])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_an_import_survives_save_load_merge_and_export(tmp_path, name, patterns):
    target = QV if name == "llama" else ["c_attn"]
    expected = written(name, tmp_path / "peft", target_modules=target, **patterns)
    model = rankwise.load(tiny.MODELS[name](), tmp_path / "peft")
    rankwise.save(model, tmp_path / "own")
    assert torch.equal(read(name, tmp_path / "own"), expected)
    rankwise.export(model, tmp_path / "out")
    assert torch.equal(read(name, tmp_path / "out"), expected)
    assert torch.equal(tiny.logits(stock(name, tmp_path / "out"), tiny.fed(name)), expected)
    assert torch.allclose(tiny.logits(rankwise.merge(model), tiny.fed(name)), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"lora_bias": True}, "lora_bias"),
        ({"bias": "lora_only"}, "bias"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights = 'pissa' has changed the base"),
        ({"init_lora_weights": "olora"}, "init_lora_weights"),
        ({"trainable_token_indices": [1, 2]}, "trainable_token_indices"),
        ({"alpha_pattern": {"(q|v)_proj": 3}}, "is a regular expression"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_what_is_not_read_is_refused_by_name(tmp_path, config, message):
    written("llama", tmp_path, target_modules=QV, **config)
    base = tiny.llama()
    with pytest.raises(DataError, match=f"adapter_config.json: .*{message}" if "|" not in message else message):
        rankwise.load(base, tmp_path)
    assert not is_adapted(base)


def edited(path: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_tensors(path / "adapter_model.safetensors")
    change(tensors)
    (path / "adapter_model.safetensors").write_bytes(save_tensors(tensors))


Q0 = "base_model.model.model.layers.0.self_attn.q_proj.lora_"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(Q0 + "B.weight"), "has only its A"),
        (lambda t: t.update({Q0 + "magnitude": torch.ones(3)}), "not part of a plain LoRA"),
        (lambda t: t.update({Q0 + "A.weight": torch.ones(4, 5)}), "5 -> 12 in the file, 12 -> 12 in this model"),
        (lambda t: t.update({Q0 + "A.weight": torch.ones(3, 12)}), "q_proj"),
        (lambda t: t.update({"base_model.model.x.lora_A.weight": torch.ones(1, 1)}), "'x' has only its A"),
        (lambda t: t.clear(), "holds no tensor"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_weights_that_do_not_fit_are_refused(tmp_path, change, message):
    written("llama", tmp_path, target_modules=QV)
    edited(tmp_path, change)
    base = tiny.llama()
    with pytest.raises(DataError, match=message):
        rankwise.load(base, tmp_path)
    assert not is_adapted(base)


@pytest.mark.filterwarnings("ignore")
def test_another_model_another_type_and_a_second_adapter_are_refused(tmp_path):
    written("llama", tmp_path, target_modules=QV)
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


# Out.


def stock(name: str, path: Path) -> nn.Module:
    """Load with the real peft, refusing anything missing, unexpected or warned about."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.simplefilter("ignore", FutureWarning)
        config = LoraConfig.from_pretrained(str(path))
        model = PeftModel(tiny.MODELS[name](), config)
        result = model.load_adapter(str(path), "default", is_trainable=False)
    assert not result.unexpected_keys and not [key for key in result.missing_keys if "lora_" in key]
    return PeftModel.from_pretrained(tiny.MODELS[name](), str(path)).eval()


def adapted(name: str, blocks: int = 1, sites: Any = "all-linear", **settings: Any) -> nn.Module:
    model = rankwise.adapt(tiny.MODELS[name](), "lora", rank=3, sites=sites, scale=0.7, **settings)
    for number in range(1, blocks):
        grow(model, [Change("freeze"), Change("append", f"t{number}", number + 1)], 0)
    tiny.wake(model)
    return model


@pytest.mark.parametrize(
    ("name", "sites"),
    [
        ("llama", "all-linear"),
        ("llama", ["embed_tokens", "q_proj", "lm_head"]),
        ("vit", "all-linear"),
        ("gpt2", "c_fc"),
        ("bert", ["query", "classifier"]),
        ("mlp", "all-linear"),
    ],
)
def test_a_plain_adapter_has_the_same_bits_in_stock_peft(tmp_path, name, sites):
    model, batch = adapted(name, sites=sites), tiny.fed(name)
    rankwise.export(model, tmp_path)
    assert torch.equal(tiny.logits(stock(name, tmp_path), batch), tiny.logits(model, batch))
    assert torch.equal(read(name, tmp_path), tiny.logits(model, batch))


def close(found: Tensor, expected: Tensor) -> bool:
    return float((found - expected).abs().max() / expected.abs().max()) < 1e-5


@pytest.mark.parametrize(
    ("name", "blocks", "sites"),
    [
        ("llama", 3, "all-linear"),
        ("gpt2", 1, "all-linear"),
        ("gpt2", 2, ["c_attn.q", "c_attn.v", "c_fc"]),
        ("gpt2", 1, ["c_attn.k"]),
        ("dense", 2, ["words", "conv", "fc"]),
    ],
)
def test_blocks_and_fused_parts_become_one_lora(tmp_path, name, blocks, sites):
    model, batch = adapted(name, blocks, sites), tiny.fed(name)
    rankwise.export(model, tmp_path)
    assert close(tiny.logits(stock(name, tmp_path), batch), tiny.logits(model, batch))
    loaded: Any = stock(name, tmp_path)
    merged = loaded.merge_and_unload()
    assert close(tiny.logits(merged, batch), tiny.logits(model, batch))


def test_ranks_that_differ_become_patterns(tmp_path):
    model, batch = adapted("llama", 2), tiny.fed("llama")
    grow(model, [Change("drop", "t1", site="model.layers.1.mlp.up_proj")], 0)
    rankwise.export(model, tmp_path, base_name="tiny")
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "tiny" and config["r"] == 5
    assert list(config["rank_pattern"].values()) == [3]
    assert close(tiny.logits(stock("llama", tmp_path), batch), tiny.logits(model, batch))
    assert torch.equal(read("llama", tmp_path), tiny.logits(rankwise.load(tiny.llama(), tmp_path), batch))


class Deep(nn.Module):
    """Has a module whose path is the end of another's."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(5, 5)
        self.inner = nn.ModuleDict({"fc": nn.Linear(5, 5)})

    def forward(self, input: Tensor) -> Tensor:
        return self.inner["fc"](self.fc(input).tanh())


@pytest.mark.parametrize("exclude", [["inner.fc"], []])
def test_peft_takes_no_module_for_another(tmp_path, monkeypatch, exclude):
    monkeypatch.setattr(tiny, "MODELS", {**tiny.MODELS, "deep": lambda: tiny.seeded(Deep)})
    model, batch = adapted("deep", exclude=exclude), tiny.fed("mlp")
    if not exclude:
        grow(model, [Change("append", "more", 2, site="inner.fc")], 0)
    rankwise.export(model, tmp_path)
    assert torch.equal(tiny.logits(stock("deep", tmp_path), batch), tiny.logits(model, batch))


def test_a_cast_adapter_is_exported_as_it_is(tmp_path):
    model = adapted("gpt2", sites="c_attn.q").bfloat16()
    rankwise.export(model, tmp_path)
    tensors: Mapping[str, Tensor] = load_tensors(tmp_path / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}


def test_a_router_is_refused_with_the_reason(tmp_path):
    model = rankwise.adapt(tiny.llama(), "mora", rank=2)
    with pytest.raises(UsageError, match=r"SelfActivated: this gate depends on the input.*rankwise\.save"):
        rankwise.export(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_dilated_convolution_is_refused(tmp_path):
    with pytest.raises(UsageError, match="'conv' is a dilated convolution"):
        rankwise.export(adapted("mixed", sites="conv"), tmp_path)


@pytest.mark.filterwarnings("ignore")
def test_an_embedding_of_another_base_is_refused(tmp_path):
    written("llama", tmp_path, target_modules=["embed_tokens"])
    base = tiny.llama()
    with torch.no_grad():
        base.get_parameter("model.embed_tokens.weight")[0, 0] += 1
    with pytest.raises(DataError, match=r"embed_tokens\.base_layer\.weight' is neither"):
        rankwise.load(base, tmp_path)


def test_an_adapter_without_blocks_and_an_unknown_format_are_refused(tmp_path):
    model = adapted("mlp")
    with pytest.raises(UsageError, match="export to 'gguf' does not exist"):
        rankwise.export(model, tmp_path, to="gguf")
    grow(model, [Change("drop", "1")], 0)
    with pytest.raises(UsageError, match="holds no block"):
        rankwise.export(model, tmp_path)
    assert all(bank.size == 0 for _, bank in banks_of(model).values())
