"""Every method on a tiny random model of every architecture: put on, train two steps, save, load, merge.

`python benchmarks/models.py` writes docs/models.md; two minutes on one core.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    CLIPConfig,
    CLIPModel,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)

import rankwise
from rankwise import papers
from rankwise.adapters import adapter_of
from rankwise.errors import RankwiseError
from rankwise.learning.recipe import Method
from rankwise.seeds import generator

SIZES: dict[str, Any] = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 12, "intermediate_size": 20}
TEXT: dict[str, Any] = {"vocab_size": 29, "max_position_embeddings": 16}
DECODER: dict[str, Any] = {**SIZES, **TEXT, "num_key_value_heads": 1}
IMAGE: dict[str, Any] = {"image_size": 8, "patch_size": 4}
T5: dict[str, Any] = {"vocab_size": 29, "d_model": 12, "d_kv": 6, "d_ff": 20, "num_layers": 2, "num_heads": 2}
GPT2: dict[str, Any] = {"n_embd": 12, "n_layer": 2, "n_head": 2, "vocab_size": 29, "n_positions": 16}
ENDS: dict[str, Any] = {"bos_token_id": 0, "eos_token_id": 0}
CLIP: dict[str, Any] = {"text_config": {**SIZES, **TEXT}, "vision_config": {**SIZES, **IMAGE}, "projection_dim": 8}

MODELS: Mapping[str, Callable[[], nn.Module]] = {
    "Llama": lambda: LlamaForCausalLM(LlamaConfig(**DECODER)),
    "Qwen": lambda: Qwen2ForCausalLM(Qwen2Config(**DECODER)),
    "Gemma": lambda: Gemma2ForCausalLM(Gemma2Config(**DECODER, head_dim=6)),
    "GPT-2": lambda: GPT2LMHeadModel(GPT2Config(**GPT2, **ENDS)),
    "T5": lambda: T5ForConditionalGeneration(T5Config(**T5, decoder_start_token_id=0)),
    "BERT": lambda: BertForSequenceClassification(BertConfig(**SIZES, **TEXT)),
    "ViT": lambda: ViTForImageClassification(ViTConfig(**SIZES, **IMAGE)),
    "CLIP": lambda: CLIPModel(CLIPConfig(**CLIP)),
}


def made(name: str) -> nn.Module:
    """Return the tiny model of an architecture, from a seed of its own."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return MODELS[name]().eval()


def fed(name: str) -> dict[str, Tensor]:
    """Return a batch for it."""
    rng = generator(0, "batch", name)
    pixels = {"pixel_values": torch.randn(3, 3, 8, 8, generator=rng)}
    words = {"input_ids": torch.randint(1, 29, (3, 7), generator=rng)}
    more = {"ViT": pixels, "CLIP": {**pixels, **words}, "T5": {**words, "decoder_input_ids": words["input_ids"]}}
    return more.get(name, words)


def logits(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """Return what the model computes."""
    out = model(**batch)
    return out.logits_per_image if "logits_per_image" in out else out.logits


def cell(name: str, method: Method, folder: Path) -> str:
    """Put `method` on the architecture, train two steps, save, load and merge; return what could be done, or why not.

    Raises:
        AssertionError: something came out wrong, which no refusal explains.

    """
    if method.live != "adapter":
        return "no adapter"
    try:
        model = rankwise.adapt(made(name), method.slug, rank=4)
    except RankwiseError as error:
        return f"refused: {error}"
    batch = fed(name)
    _train(model, batch)
    before = logits(model.eval(), batch).detach()
    rankwise.save(model, folder / "adapter")
    back = rankwise.load(made(name), folder / "adapter")
    torch.testing.assert_close(logits(back.eval(), batch).detach(), before, rtol=1e-6, atol=1e-6)
    if not method.mergeable:
        return "trains, saves, loads"
    torch.testing.assert_close(logits(rankwise.merge(model), batch).detach(), before, rtol=1e-5, atol=1e-5)
    return "trains, saves, loads, merges"


def _train(model: nn.Module, batch: Mapping[str, Tensor]) -> None:
    """Take two steps of Adam; some parameter of the adapter must move, and the branches must stay what they are."""
    live = [p for p in model.parameters() if p.requires_grad]
    before = [p.detach().clone() for p in live]
    rule = torch.optim.Adam(live, lr=1e-2)
    for _ in range(2):
        rule.zero_grad()
        logits(model.train(), batch).float().log_softmax(-1)[..., 0].mean().backward()
        rule.step()
    assert any(not torch.equal(p, old) for p, old in zip(live, before, strict=True)), adapter_of(model).record


def table() -> str:
    """Return the matrix as Markdown."""
    reasons: list[str] = []
    lines = ["| method | " + " | ".join(MODELS) + " |", "|" + "---|" * (len(MODELS) + 1)]
    for slug in papers.slugs():
        found = []
        for name in MODELS:
            with tempfile.TemporaryDirectory() as folder:
                found.append(_mark(cell(name, papers.method(slug), Path(folder)), reasons))
        lines.append(f"| `{slug}` | " + " | ".join(found) + " |")
    return "\n".join([*lines, "", *(f"{i}. {reason}" for i, reason in enumerate(reasons, 1))])


def _mark(text: str, reasons: list[str]) -> str:
    short = {"trains, saves, loads, merges": "merges", "trains, saves, loads": "saves", "no adapter": "-"}
    if text in short:
        return short[text]
    if text not in reasons:
        reasons.append(text)
    return f"no ({reasons.index(text) + 1})"


INTRO = """# Models

    python benchmarks/models.py

Each method on a tiny random model of each architecture (two layers, width 12), built from its config:
`rankwise.adapt`, two steps of Adam, `rankwise.save`, `rankwise.load` on a fresh base (equal to 1e-6), and
`rankwise.merge` (equal to 1e-5) where the method can be merged. *merges*: all of it; *saves*: all but the merge, which
the method does not have (its update depends on the input); *-*: the method has no adapter, it trains the base or the
head in a run; *no (n)*: refused, with the reason below.

"""

if __name__ == "__main__":
    torch.set_num_threads(1)
    Path(__file__).parents[1].joinpath("docs", "models.md").write_text(INTRO + table() + "\n", encoding="utf-8")
