"""Stock PEFT as the other side: it writes checkpoints on tiny models, and loads ours without a word of complaint."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import tiny  # pyright: ignore[reportMissingImports]
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import (
    GemmaConfig,
    GemmaForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

import rankwise

DECODER: dict[str, Any] = {**tiny.WIDTH, **tiny.TEXT, "num_key_value_heads": 1, "head_dim": 6, "pad_token_id": 0}


def t5() -> nn.Module:
    config = T5Config(d_model=12, d_kv=6, d_ff=20, num_layers=2, num_heads=2, vocab_size=29)
    return tiny.seeded(lambda: T5ForConditionalGeneration(config))


def qwen() -> nn.Module:
    return tiny.seeded(lambda: Qwen3ForCausalLM(Qwen3Config(**DECODER, tie_word_embeddings=False)))


def gemma() -> nn.Module:
    return tiny.seeded(lambda: GemmaForCausalLM(GemmaConfig(**DECODER)))


def tied_llama() -> nn.Module:
    config = LlamaConfig(**tiny.WIDTH, **tiny.TEXT, num_key_value_heads=1, tie_word_embeddings=True)
    return tiny.seeded(lambda: LlamaForCausalLM(config))


class Convolutions(nn.Module):
    """Two convolutions of different kernels with norms between, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.second = nn.Conv2d(6, 4, (1, 2), bias=False)
        self.head = nn.Linear(4, 3)

    def forward(self, pixel_values: Tensor) -> Tensor:
        hidden = self.norm(self.first(pixel_values)).relu()
        return self.head(self.second(hidden).mean((2, 3)))


MODELS: Mapping[str, Callable[[], nn.Module]] = {
    **tiny.MODELS,
    "t5": t5,
    "qwen": qwen,
    "gemma": gemma,
    "tied": tied_llama,
    "conv": lambda: tiny.seeded(Convolutions),
}


def fed(name: str) -> dict[str, Tensor]:
    """A batch for the model called `name`."""
    if name == "t5":
        ids = tiny.fed("llama")["input_ids"]
        return {"input_ids": ids, "decoder_input_ids": ids[:, :4]}
    return tiny.fed("vit" if name == "conv" else name)


def computed(model: nn.Module, name: str) -> Tensor:
    return tiny.logits(model.eval(), fed(name))


def written(name: str, path: Path, *, save: Mapping[str, Any] | None = None, **config: Any) -> Tensor:
    """Let peft write a LoRA in which all that trains is drawn at random; return what a fresh peft model computes."""
    torch.manual_seed(7)
    model = get_peft_model(MODELS[name](), LoraConfig(**{"r": 4, "lora_alpha": 6, **config}))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape) * 0.5)
    model.save_pretrained(str(path), **(save or {}))
    expected = computed(PeftModel.from_pretrained(MODELS[name](), str(path)), name)
    assert not torch.allclose(expected, computed(MODELS[name](), name), atol=1e-6), "peft's adapter does nothing"
    return expected


def read(name: str, path: Path) -> nn.Module:
    return rankwise.load(MODELS[name](), path)


def loaded(name: str, path: Path) -> Any:
    """Load with stock peft as its from_pretrained does; refuse any key missing or left over, and any warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.simplefilter("ignore", FutureWarning)
        warnings.filterwarnings("ignore", "Model has `tie_word_embeddings=True`")  # said of any adapter on tied weights
        model = PeftModel(MODELS[name](), LoraConfig.from_pretrained(str(path)))
        result = model.load_adapter(str(path), "default", is_trainable=False)
    missing = [key for key in result.missing_keys if "lora_" in key or ".modules_to_save." in key]
    assert not result.unexpected_keys and not missing, (result.unexpected_keys, missing)
    return model.eval()
