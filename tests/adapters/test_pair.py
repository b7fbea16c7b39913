"""The pair of factors: exact identity at the start, right gradients, PEFT's bits, fused parts, dropout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import pytest
import tiny
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from rankwise.adapters import (
    Blocks,
    Change,
    Context,
    Identity,
    Pair,
    Site,
    Spec,
    attach,
    banks_of,
    bare,
    fold,
    grow,
    pick_sites,
    using,
)

EVERY = {
    "llama": ["all-linear", "lm_head", "embed_tokens"],
    "gpt2": ["all-linear", "wte", "lm_head"],
    "bert": ["all-linear", "word_embeddings"],
    "vit": ["all-linear", "projection", "classifier"],
    "mixed": ["words", "conv", "fc"],
    "mlp": ["all-linear"],
}
"""All kinds of sites, each model with heads, embeddings and convolutions."""


def adapted(model: nn.Module, sites, rank: int = 2, scale: float = 0.7, **settings) -> nn.Module:
    names = [s for s in ([sites] if isinstance(sites, str) else sites) if s != "all-linear"]
    chosen = {site.name: site for site in pick_sites(model)} if "all-linear" in sites else {}
    chosen |= {site.name: site for site in pick_sites(model, names)} if names else {}
    attach(model, list(chosen.values()), Pair(Identity(), scale, **settings), {})
    grow(model, [Change("append", "a", rank)], 0)
    return model


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("training", [False, True])
def test_a_new_block_changes_no_bit(name, training):
    model, batch = tiny.MODELS[name](), tiny.fed(name)
    model.train(training)

    def outputs() -> Tensor:
        torch.manual_seed(0)
        return tiny.logits(model, batch)

    before = outputs()
    adapted(model, EVERY[name])
    assert torch.equal(outputs(), before)
    assert len(banks_of(model)) >= 2
    tiny.wake(model)
    assert not torch.allclose(outputs(), before, atol=1e-3)


@pytest.mark.parametrize("site", ["words", "conv", "fc"])
def test_gradients_agree_with_differences(site):
    model = adapted(tiny.mixed().double(), [site]).double()
    tiny.wake(model, size=1.0)
    (bank,) = [bank for _, bank in banks_of(model).values()]
    names = [f"{path}.live.{n}" for path, m in model.named_modules() if m is bank for n in "AB"]
    batch = tiny.fed("mixed")["ids"]

    def outputs(a: Tensor, b: Tensor) -> Tensor:
        return torch.func.functional_call(model, dict(zip(names, (a, b), strict=True)), (batch,))

    factors = [bank.live[n].detach().clone().requires_grad_() for n in "AB"]
    assert torch.autograd.gradcheck(outputs, factors)


def test_gradients_reach_the_input():
    model = adapted(tiny.mlp(), "all-linear").double()
    tiny.wake(model)
    assert torch.autograd.gradcheck(model, torch.randn(2, 5, dtype=torch.float64, requires_grad=True))


def test_the_padding_row_of_an_embedding_learns_nothing():
    model = adapted(tiny.mixed(), ["words"])
    tiny.wake(model)
    model(torch.tensor([[0, 0, 3, 0, 0, 3, 0]])).sum().backward()
    (_, bank) = banks_of(model)["words"]
    gradient = bank.live["A"].grad
    assert gradient is not None and gradient.abs().sum(0).nonzero().flatten().tolist() == [3]


class OneLayer(nn.Module):
    """A single projection under the name that PEFT is told."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


@pytest.mark.parametrize("kind", ["linear", "transposed"])
@pytest.mark.parametrize(("rank", "alpha"), [(1, 1), (3, 5), (8, 16), (6, 0.7), (5, 11), (7, 1 / 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_bits_of_peft(kind, rank, alpha, dtype):
    def layer() -> nn.Module:
        return tiny.seeded(lambda: OneLayer(nn.Linear(33, 18) if kind == "linear" else Conv1D(18, 33))).to(dtype)

    ours = adapted(layer(), ["layer"], rank, alpha / rank)
    tiny.wake(ours)
    theirs = get_peft_model(
        layer(), LoraConfig(r=rank, lora_alpha=alpha, target_modules=["layer"], fan_in_fan_out=kind != "linear")
    )
    (_, bank) = banks_of(ours)["layer"]
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "lora_" in name:
                parameter.copy_(bank.live["A" if "lora_A" in name else "B"])
    x = torch.randn(4, 9, 33, generator=torch.Generator().manual_seed(5)).to(dtype)
    assert next(p for n, p in theirs.named_parameters() if "lora_A" in n).dtype == torch.float32
    assert torch.equal(ours(x), theirs(x))
    assert ours(x).dtype == dtype


def test_dropout_acts_in_training_only_and_only_on_the_branch():
    model = adapted(tiny.mlp(6, 4), "all-linear", dropout=0.5)
    tiny.wake(model)
    x = torch.ones(64, 6)
    quiet, calm = model.eval()(x), model(x)
    assert torch.equal(quiet, calm)
    model.train()
    torch.manual_seed(0)
    loud = model(x)
    assert not torch.equal(loud[0], loud[1])
    with using(model, blocks=()):
        assert torch.equal(model(x), tiny.mlp(6, 4)(x))


@pytest.mark.parametrize("parts", [["c_attn"], ["c_attn.q", "c_attn.v"], ["c_attn.k"]])
def test_fused_parts_equal_the_block_diagonal_lora(parts):
    model, batch = adapted(tiny.gpt2(), parts, rank=3, scale=0.4), tiny.fed("gpt2")
    tiny.wake(model)
    expected = tiny.gpt2()
    with torch.no_grad():
        for name, (site, bank) in banks_of(model).items():
            update = torch.zeros(site.width, site.n_in)
            update["qkv".index(name[-1]) * 12 :][:12] = 0.4 * bank.tensor("B") @ bank.tensor("A")
            expected.get_parameter(f"{site.path}.weight").add_(update.T)
    assert torch.allclose(tiny.logits(model, batch), tiny.logits(expected, batch), rtol=1e-5, atol=1e-6)


def test_a_part_without_blocks_adds_nothing():
    model = adapted(tiny.gpt2(), ["c_attn"])
    tiny.wake(model)
    site = "transformer.h.0.attn.c_attn.k"
    grow(model, [Change("drop", "a", site=site)], 0)
    layer = model.get_submodule("transformer.h.0.attn.c_attn")
    x = torch.randn(2, 3, 12)
    with using(model, blocks=()):
        base = layer(x)
    assert torch.equal(layer(x)[..., 12:24], base[..., 12:24])
    assert not torch.allclose(layer(x)[..., :12], base[..., :12])


def test_several_blocks_are_one_sum_in_any_packing():
    model = adapted(tiny.mlp(), "all-linear")
    grow(model, [Change("freeze"), Change("append", "b", 1), Change("append", "c", 3)], 0)
    tiny.wake(model)
    x, whole = tiny.fed("mlp")["input"], tiny.mlp()
    with torch.no_grad():
        for name, (_, bank) in banks_of(model).items():
            whole.get_parameter(f"{name}.weight").add_(0.7 * bank.tensor("B") @ bank.tensor("A"))
    assert torch.allclose(model(x), whole(x), atol=1e-6)
    before = model(x)
    for op in ("freeze", "thaw"):
        for _, bank in banks_of(model).values():
            bank.freeze() if op == "freeze" else bank.thaw(["a"])
        assert torch.allclose(model(x), before, atol=1e-6)
    with using(model, blocks=("a", "c", "b")):
        assert torch.allclose(model(x), before, atol=1e-6)


@dataclass(frozen=True)
class Halved:
    """A linear gate that is not the identity."""

    linear: ClassVar[bool] = True

    def specs(self, site: Site) -> Mapping[str, Spec]:
        return {}

    def start(self, site: Site, rank: int, rng: torch.Generator) -> dict[str, Tensor]:
        return {}

    def __call__(self, z: Tensor, x: Tensor, blocks: Blocks, context: Context, site: Site, training: bool) -> Tensor:
        return z * torch.arange(1, z.shape[-1] + 1)


def test_a_linear_gate_is_folded_with_the_update():
    model = tiny.mlp()
    attach(model, pick_sites(model), Pair(Halved()), {})
    grow(model, [Change("append", "a", 3)], 0)
    tiny.wake(model)
    x = tiny.fed("mlp")["input"]
    before = model(x)
    fold(model)
    with bare(model):
        assert torch.allclose(model(x), before, atol=1e-5)
        assert not torch.allclose(model(x), tiny.mlp()(x), atol=1e-2)
