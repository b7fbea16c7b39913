"""Bases: folders in the layout of Hugging Face."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .case import CANARY, STALL, Case, Escape
from .records import Odd, broken_json, plain
from .tensors import torch_archive
from .writing import Alter, Edit, alone, altered, edited, holding, misplaced

CONFIG, TOKENIZER, WORDS, TENSORS = "config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"
REMOTE = {"AutoConfig": "evil.Config", "AutoModel": "evil.Model", "AutoTokenizer": ["evil.T", None]}
ATTENTION = ("_attn_implementation", "_attn_implementation_internal", "attn_implementation", "_experts_implementation")
QUANTIZED = plain(
    {"quant_method": CANARY},
    {"quant_method": "bitsandbytes", "load_in_4bit": True},
    {"quant_method": "gptq", "bits": 4},
    3,
    {},
)
TYPES = plain(
    *(CANARY, "../bert", "__init__", "", None, 3, "adapter", "encoder-decoder", "timm_wrapper", "timm_backbone")
)
SIZES = (
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size"),
    "max_position_embeddings",
)
SWITCHES = ("hidden_act", "position_embedding_type", "is_decoder", "add_cross_attention", "auto_map", "pruned_heads")
PARTS = ("model", "pre_tokenizer", "post_processor", "normalizer", "added_tokens")
ODD: tuple[tuple[str, Odd], ...] = (
    (CONFIG, Odd(ATTENTION, plain("evil/kernels", CANARY, 3))),
    (CONFIG, Odd(("dtype", "torch_dtype"), plain("load", "hub", "float64", "nope", 3, {"": CANARY}))),
    (CONFIG, Odd(("quantization_config",), QUANTIZED, "quantization {word}")),
    (CONFIG, Odd(("model_type",), TYPES, refused=True)),
    (CONFIG, Odd(("architectures",), plain(["os.system"], [CANARY], "x", 3))),
    (CONFIG, Odd(SIZES, plain(10**6, 10**9, 10**18, -1, 0, "x", None))),
    (CONFIG, Odd(SWITCHES, plain(CANARY, STALL, {"0": [0]}, 10**9))),
    (WORDS, Odd(("tokenizer_class",), plain(CANARY, "PreTrainedTokenizer", "../x", 3))),
    (WORDS, Odd(("model_max_length",), plain(10**30, -1, "x", None))),
    (
        TOKENIZER,
        Odd(PARTS, plain(None, 3, "x", {"type": CANARY}, [{"id": 2**40, "content": "a"}]), "tokenizer {key} {word}"),
    ),
)
INDICES: dict[str, Any] = {
    "outside": {"weight_map": {"a": "../../outside/base/model.safetensors"}},
    "of the system": {"weight_map": {"a": "/etc/passwd"}},
    "a pickle": {"weight_map": {"a": "pytorch_model.bin"}},
    "no map": {},
    "a list": [],
    "odd": {"weight_map": {"a": 3}},
    "missing": {"weight_map": {"a": "model-00001-of-00002.safetensors"}},
}
PEFT = {"peft_type": "LORA", "auto_mapping": {"parent_library": CANARY, "base_model_class": "A"}}


def bases(sound: Path) -> Iterator[Case]:
    """All of them."""
    base = sound / "base"
    for name, alters, refused in (*unreadable(base), *with_code(), *odd()):
        yield Case(f"base/{name}", "base", altered(base, *alters), refused)
    for name in (TENSORS, CONFIG, TOKENIZER, WORDS):
        yield from misplaced(base, "base", name)
    for name, alters in weights().items():
        yield Case(f"base/{name}", "base", altered(base, *alters), True)
    yield Case("base/nothing", "base", alone("base", os.mkdir), True)


Changes = Iterator[tuple[str, tuple[Alter, ...], bool | None]]
"""(name, what is done to the folder, whether it must be refused)."""


def unreadable(base: Path) -> Changes:
    """Records that are no JSON."""
    for word, file in (("config", CONFIG), ("tokenizer", TOKENIZER)):
        for name, data in broken_json((base / file).read_bytes()).items():
            yield f"{word} {name}", (holding(file, data),), True
    broken = broken_json(b"{}")
    for name in ("a list", "deep lists", "half", "huge number"):
        yield f"tokenizer_config {name}", (holding(WORDS, broken[name]),), True


def with_code() -> Changes:
    """Records that name code, of this folder or of a repository."""
    elsewhere = {key: f"evil/repo--{value}" for key, value in REMOTE.items()}
    evil = holding("evil.py", f"import {CANARY}\n".encode())
    for file in (CONFIG, WORDS):
        for words, named in (("brings code", REMOTE), ("names a repository's code", elsewhere)):
            yield f"{file} {words}", (edited(file, code(named)), evil), None


def code(named: dict[str, Any]) -> Edit:
    def edit(record: dict[str, Any]) -> None:
        record["auto_map"] = named
        record.setdefault("model_type", "x")

    return edit


def odd() -> Changes:
    for file, table in ODD:
        for name, edit, refused in table.edits():
            yield name, (edited(file, edit),), refused


def weights() -> dict[str, tuple[Alter, ...]]:
    """Folders whose weights are elsewhere, a pickle or of an adapter."""
    pickled = holding("pytorch_model.bin", pickle.dumps(Escape()))
    indexed = {
        f"index {name}": (moved, pickled, holding(f"{TENSORS}.index.json", json.dumps(index).encode()))
        for name, index in INDICES.items()
    }
    unsafe = (lambda place: (place / TENSORS).unlink(), holding("pytorch_model.bin", torch_archive()))
    peft = holding("adapter_config.json", json.dumps(PEFT).encode())
    return {**indexed, "a pickle alone": unsafe, "an adapter beside": (peft,)}


def moved(place: Path) -> None:
    (place / TENSORS).rename(place / "other.safetensors")
