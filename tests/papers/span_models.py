"""Small models of every architecture with spans beside their MLPs, and what they are fed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    Gemma3TextConfig,
    Gemma3TextModel,
    GemmaConfig,
    GemmaModel,
    GPT2Config,
    GPT2Model,
    LlamaConfig,
    LlamaModel,
    Qwen3Config,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
    ViTConfig,
    ViTModel,
)

from rankwise.adapters import Change, adapter_of, banks_of, grow, using
from rankwise.api import adapt
from rankwise.papers.sema.branch import Modular
from rankwise.seeds import generator

WIDTH: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24}
TEXT: dict[str, Any] = {**WIDTH, "vocab_size": 20}
KV: dict[str, Any] = {**TEXT, "num_key_value_heads": 1, "head_dim": 8}
IMAGE: dict[str, Any] = {**WIDTH, "image_size": 8, "patch_size": 4}
T5: dict[str, Any] = {"d_model": 16, "d_ff": 24, "num_layers": 3, "num_heads": 2, "d_kv": 8, "vocab_size": 20}
MODELS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "vit": (lambda: ViTModel(ViTConfig(**IMAGE), add_pooling_layer=False), "layers"),
    "clip": (lambda: CLIPVisionModel(CLIPVisionConfig(**IMAGE)), "encoder.layers"),
    "llama": (lambda: LlamaModel(LlamaConfig(**TEXT)), "layers"),
    "qwen": (lambda: Qwen3Model(Qwen3Config(**KV)), "layers"),
    "gemma": (lambda: GemmaModel(GemmaConfig(**KV)), "layers"),
    "gemma3": (lambda: Gemma3TextModel(Gemma3TextConfig(**KV)), "layers"),
    "gpt2": (lambda: GPT2Model(GPT2Config(n_embd=16, n_layer=3, n_head=2, vocab_size=20)), "h"),
    "t5": (
        lambda: T5EncoderModel(T5Config(d_model=16, d_ff=24, num_layers=3, num_heads=2, d_kv=8, vocab_size=20)),
        "encoder.block",
    ),
}
"""Architecture -> how it is made, and where its blocks lie."""


def randn(*shape: int, key: str) -> Tensor:
    return torch.randn(*shape, generator=generator(0, key))


def made(kind: str) -> nn.Module:
    torch.manual_seed(0)
    return (MODELS[kind][0] if kind in MODELS else lambda: BertModel(BertConfig(**TEXT)))().eval()


def fed(kind: str) -> dict[str, Tensor]:
    if kind in ("vit", "clip"):
        return {"pixel_values": randn(4, 3, 8, 8, key="pixels")}
    return {"input_ids": torch.randint(0, 20, (4, 6), generator=generator(0, "ids"))}


def vit(blocks: int = 1, **form: Any) -> nn.Module:
    """Return a vision transformer whose adapters all write something; the last is live."""
    model = adapt(made("vit"), "sema", rank=3, form={"expandable": 2, "latent": 5, **form})
    for label in range(2, blocks + 1):
        move(model)
        grow(model, [Change("freeze"), Change("append", str(label), 3)], 0)
    move(model)
    return model.eval()


def move(model: nn.Module) -> None:
    for name, (_, bank) in banks_of(model).items():
        for key in ("up", "up_bias"):
            nn.init.normal_(bank.live[key], generator=generator(0, key, name, *bank.labels))


def states(model: nn.Module, **context: Any) -> Tensor:
    with torch.no_grad(), using(model, **context):
        return model(**fed("vit")).last_hidden_state


def form_of(model: nn.Module) -> Modular:
    form = adapter_of(model).branch
    assert isinstance(form, Modular)
    return form
