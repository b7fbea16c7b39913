"""What leaves: stock PEFT loads it without a missing or left-over key and computes the same; routers say why not."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
import stock  # pyright: ignore[reportMissingImports]
import tiny  # pyright: ignore[reportMissingImports]
import torch
from torch import Tensor, nn

import rankwise
from rankwise import papers
from rankwise.adapters import Change, banks_of, fold, grow
from rankwise.errors import UsageError
from rankwise.tensors import load_tensors

ADAPTERS = [slug for slug in papers.slugs() if papers.method(slug).live == "adapter"]
LEAVING = [slug for slug in ADAPTERS if papers.method(slug).peft in ("exact", "converted")]
STAYING = [slug for slug in ADAPTERS if papers.method(slug).peft is None]
MERGED = [slug for slug in ADAPTERS if papers.method(slug).peft == "merged"]


def adapted(name: str, blocks: int = 1, sites: Any = "all-linear", method: str = "lora", **settings: Any) -> nn.Module:
    """Put `method` on a tiny model and move all that learns, as training would."""
    scaled = {"scale": 0.7} if method in ("lora", "dora") else {}  # some methods have a scale of their own
    model = rankwise.adapt(stock.MODELS[name](), method, rank=4, sites=sites, **scaled, **settings)
    moved(model)
    for number in range(1, blocks):
        grow(model, [Change("freeze"), Change("append", f"t{number}", number + 1)], 0)
        moved(model)
    return model.eval()


def moved(model: nn.Module) -> None:
    rng = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=rng) * 0.3)


def close(found: Tensor, expected: Tensor, most: float = 1e-5) -> bool:
    return float((found - expected).abs().max() / expected.abs().max()) < most


@pytest.mark.parametrize("name", ["llama", "gpt2", "t5"])
@pytest.mark.parametrize("method", LEAVING)
def test_every_method_that_says_so_leaves(tmp_path, method, name):
    sites = {"llama": ["q_proj", "down_proj"], "gpt2": ["c_attn.q", "c_fc"], "t5": ["q", "wo"]}[name]
    model = adapted(name, sites=sites, method=method)
    expected = stock.computed(model, name)
    assert not close(expected, stock.computed(stock.MODELS[name](), name))
    rankwise.export(model, tmp_path)
    assert close(stock.computed(stock.loaded(name, tmp_path), name), expected)
    assert close(stock.computed(stock.read(name, tmp_path), name), expected)


@pytest.mark.parametrize("method", STAYING)
def test_the_others_say_why_not(tmp_path, method):
    model = adapted("llama", method=method)
    with pytest.raises(UsageError, match=r"rankwise\.save"):
        rankwise.export(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("method", MERGED)
def test_those_that_only_merge_never_leave_as_something_else(tmp_path, method):
    """Full rank in general; where a state of theirs has thin factors all the same, these compute the same."""
    model = adapted("llama", method=method)
    try:
        rankwise.export(model, tmp_path / "out")
    except UsageError as error:
        assert "rankwise.merge" in str(error) and not (tmp_path / "out").exists()
        return
    assert close(stock.computed(stock.loaded("llama", tmp_path / "out"), "llama"), stock.computed(model, "llama"))


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
    model = adapted(name, sites=sites)
    rankwise.export(model, tmp_path)
    assert torch.equal(stock.computed(stock.loaded(name, tmp_path), name), stock.computed(model, name))
    assert torch.equal(stock.computed(stock.read(name, tmp_path), name), stock.computed(model, name))


@pytest.mark.parametrize("method", ["lora", "dora"])
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
def test_blocks_and_fused_parts_become_one_lora(tmp_path, name, blocks, sites, method):
    model = adapted(name, blocks, sites, method)
    rankwise.export(model, tmp_path)
    loaded = stock.loaded(name, tmp_path)
    assert close(stock.computed(loaded, name), stock.computed(model, name))
    assert close(stock.computed(loaded.merge_and_unload(), name), stock.computed(model, name))


def test_ranks_that_differ_become_patterns(tmp_path):
    model = adapted("llama", 2)
    grow(model, [Change("drop", "t1", site="model.layers.1.mlp.up_proj")], 0)
    rankwise.export(model, tmp_path, base_name="tiny")
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "tiny" and config["r"] == 6
    assert list(config["rank_pattern"].values()) == [4]
    assert close(stock.computed(stock.loaded("llama", tmp_path), "llama"), stock.computed(model, "llama"))
    assert close(stock.computed(stock.read("llama", tmp_path), "llama"), stock.computed(model, "llama"))


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
    monkeypatch.setattr(stock, "MODELS", {**stock.MODELS, "mlp": lambda: tiny.seeded(Deep)})
    model = adapted("mlp", exclude=exclude)
    if not exclude:
        grow(model, [Change("append", "more", 2, site="inner.fc")], 0)
    rankwise.export(model, tmp_path)
    assert torch.equal(stock.computed(stock.loaded("mlp", tmp_path), "mlp"), stock.computed(model, "mlp"))


def test_a_cast_adapter_is_exported_as_it_is(tmp_path):
    model = adapted("gpt2", sites="c_attn.q").bfloat16()
    rankwise.export(model, tmp_path)
    tensors: Mapping[str, Tensor] = load_tensors(tmp_path / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}


def test_a_dilated_convolution_is_refused(tmp_path):
    with pytest.raises(UsageError, match="'conv' is a dilated convolution"):
        rankwise.export(adapted("mixed", sites="conv"), tmp_path)


def test_an_adapter_without_blocks_and_an_unknown_format_are_refused(tmp_path):
    model = adapted("mlp")
    with pytest.raises(UsageError, match="export to 'gguf' does not exist"):
        rankwise.export(model, tmp_path, to="gguf")
    grow(model, [Change("drop", "1")], 0)
    with pytest.raises(UsageError, match="holds no block"):
        rankwise.export(model, tmp_path)
    assert all(bank.size == 0 for _, bank in banks_of(model).values())


def test_what_was_folded_into_the_base_leaves_too(tmp_path):
    model = adapted("gpt2", 2, ["c_attn.q", "c_fc"])
    expected = stock.computed(model, "gpt2")
    fold(model, ["1"])
    assert close(stock.computed(model, "gpt2"), expected)
    rankwise.export(model, tmp_path)
    assert close(stock.computed(stock.loaded("gpt2", tmp_path), "gpt2"), expected)


@pytest.mark.filterwarnings("ignore")
def test_a_head_that_came_along_leaves_as_a_whole_module(tmp_path):
    stock.written("bert", tmp_path / "in", target_modules=["query"], modules_to_save=["classifier"])
    model = stock.read("bert", tmp_path / "in")
    rankwise.export(model, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["modules_to_save"] == ["classifier"] and config["bias"] == "none"
