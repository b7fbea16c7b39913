"""Small models of every architecture the tests adapt, made from configs with fixed seeds, and what they are fed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    CLIPConfig,
    CLIPModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    ViTConfig,
    ViTForImageClassification,
)

from rankwise.adapters import Change, Gate, Identity, Pair, attach, banks_of, grow, pick_sites

WIDTH: dict[str, Any] = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 12, "intermediate_size": 20}
IMAGE: dict[str, Any] = {"image_size": 8, "patch_size": 4}
TEXT: dict[str, Any] = {"vocab_size": 29, "max_position_embeddings": 16}


def seeded(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make().eval()


def llama() -> nn.Module:
    return seeded(lambda: LlamaForCausalLM(LlamaConfig(**WIDTH, **TEXT, num_key_value_heads=1)))


def gpt2() -> nn.Module:
    config = GPT2Config(n_embd=12, n_layer=2, n_head=2, vocab_size=29, n_positions=16, bos_token_id=0, eos_token_id=0)
    return seeded(lambda: GPT2LMHeadModel(config))


def bert() -> nn.Module:
    return seeded(lambda: BertForSequenceClassification(BertConfig(**WIDTH, **TEXT)))


def bert_mlm() -> nn.Module:
    return seeded(lambda: BertForMaskedLM(BertConfig(**WIDTH, **TEXT)))


def vit() -> nn.Module:
    return seeded(lambda: ViTForImageClassification(ViTConfig(**WIDTH, **IMAGE)))


def clip() -> nn.Module:
    config = CLIPConfig(text_config={**WIDTH, **TEXT}, vision_config={**WIDTH, **IMAGE}, projection_dim=8)
    return seeded(lambda: CLIPModel(config))


class Mixed(nn.Module):
    """One module of every kind that torch alone has, in a row: embedding, convolution, linear."""

    def __init__(self, dilation: int = 2) -> None:
        super().__init__()
        self.words = nn.Embedding(11, 6, padding_idx=0)
        self.conv = nn.Conv2d(1, 5, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, dilation))
        self.fc = nn.Linear(5, 4)

    def forward(self, ids: Tensor) -> Tensor:
        return self.fc(self.conv(self.words(ids)[:, None]).mean((2, 3)))


def mixed() -> nn.Module:
    return seeded(Mixed)


def dense() -> nn.Module:
    return seeded(lambda: Mixed(dilation=1))


def mlp(*widths: int) -> nn.Module:
    def make() -> nn.Module:
        sizes = widths or (5, 7, 3)
        layers = [m for pair in zip(sizes, sizes[1:], strict=False) for m in (nn.Linear(*pair), nn.Tanh())]
        return nn.Sequential(*layers[:-1])

    return seeded(make)


MODELS: Mapping[str, Callable[[], nn.Module]] = {
    "llama": llama,
    "gpt2": gpt2,
    "bert": bert,
    "vit": vit,
    "mixed": mixed,
    "dense": dense,
    "mlp": mlp,
}


def fed(name: str) -> dict[str, Tensor]:
    """A batch for the model called `name`, from a generator of its own."""
    rng = torch.Generator().manual_seed(1)
    if name == "vit":
        return {"pixel_values": torch.randn(2, 3, 8, 8, generator=rng)}
    if name == "mlp":
        return {"input": torch.randn(4, 5, generator=rng)}
    ids = torch.randint(1, 11, (2, 7), generator=rng)
    return {"ids" if name in ("mixed", "dense") else "input_ids": ids}


def logits(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """What the model computes, without gradient."""
    with torch.no_grad():
        return forward(model, batch)


def forward(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    out = model(**batch)
    return out if isinstance(out, Tensor) else out.logits


def wake(model: nn.Module, seed: int = 2, size: float = 0.3) -> None:
    """Fill every tensor of every bank with draws, so that the adapter does something."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, bank in banks_of(model).values():
            for tensor in (*bank.parameters(), *bank.buffers()):
                tensor.copy_(torch.randn(tensor.shape, generator=rng) * size)


def adapted(
    model: nn.Module, sites: Any = "all-linear", gate: Gate | None = None, blocks: str = "a", awake: bool = True
) -> nn.Module:
    """Put an adapter of rank 2 at the sites, a block a letter, the last of them live."""
    attach(model, pick_sites(model, sites), Pair(gate or Identity(), 0.5), {"method": "lora"})
    for label in blocks:
        grow(model, [Change("freeze"), Change("append", label, 2)], 0)
    if awake:
        wake(model)
    return model


def live(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def gradients(model: nn.Module) -> list[Tensor]:
    found = [p.grad for p in live(model).values()]
    assert all(gradient is not None for gradient in found)
    return [gradient for gradient in found if gradient is not None]
