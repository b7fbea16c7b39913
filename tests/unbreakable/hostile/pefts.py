"""Checkpoints of PEFT: the config beside the tensors, and the folder."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Iterator
from pathlib import Path

from .case import CANARY, STALL, Case, Escape
from .records import Odd, broken_json, quoted
from .writing import Alter, altered, edited, holding, instead, misplaced, unsealed

Changes = Iterator[tuple[str, Alter, bool | None]]
"""(name, what is done to the folder, whether it must be refused)."""
CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
PATTERNS = {"of odd values": {"0": "x"}, "no table": [STALL]}
LIBRARY = {"parent_library": CANARY, "base_model_class": "Base"}
FIRST = (
    Odd(
        ("target_modules", "exclude_modules", "layers_pattern", "modules_to_save"),
        {"stalls": STALL, "of stalls": [STALL] * 100},
    ),
    Odd(("alpha_pattern",), {"stalls": {STALL: 8}}, refused=True),
    Odd(("alpha_pattern",), PATTERNS),
    Odd(("rank_pattern",), {"stalls": {STALL: 8}, **PATTERNS}),
    Odd(("auto_mapping",), {"names a module": LIBRARY}),
)
MEGATRON = {"megatron_core": CANARY, "megatron_config": {"a": 1}}
SECOND = (
    Odd(("runtime_config",), {"": {"ephemeral_gpu_offload": True}}, "{key}"),
    Odd(("tokenizer_kwargs",), {"": {"trust_remote_code": True}}, "tokenizer arguments", refused=True),
)
NUMBERS = ("lora_alpha", "lora_dropout", "r", "use_dora", "use_rslora", "init_lora_weights", "peft_type")
RAW = ("null", '"x"', "[]", "{}", "-1", str(10**30), "NaN", "1e999")
LAST = (
    Odd(
        ("trainable_token_indices",),
        quoted("x", [10**9], [-5], [1.5], {"0": [0]}, [None], {"0": "x"}),
        "trainable tokens {word}",
    ),
    Odd(("base_model_name_or_path",), quoted("../../../etc", "/etc", "hub:x", CANARY, "", None, 5), "base {word}"),
    Odd((CANARY, "corda_config", "__class__", "x" * 1000), {"": {"a": 1}}, "unknown key {key:.20}", refused=True),
)


def pefts(sound: Path) -> Iterator[Case]:
    """All of them."""
    peft = sound / "peft"
    for name, alter, refused in configs((peft / CONFIG).read_bytes()):
        yield Case(f"peft/config/{name}", "adapter", altered(peft, alter, unsealed), refused)
    for name in (TENSORS, CONFIG):
        yield from misplaced(peft, "adapter", name)
        yield Case(f"peft/{name} is a folder", "adapter", altered(peft, instead(name, os.mkdir)), True)
    for words, name in (("alone", "adapter_model.bin"), ("under the safe name", TENSORS)):
        pickled = holding(name, pickle.dumps(Escape()))
        write = altered(peft, unsealed, lambda place: (place / TENSORS).unlink(), pickled)
        yield Case(f"peft/a pickle {words}", "adapter", write, True)


def configs(valid: bytes) -> Changes:
    """What is done to the config."""
    yield from ((name, holding(CONFIG, data), True) for name, data in broken_json(valid).items())
    yield from odd(FIRST)
    yield "megatron names a module", edited(CONFIG, lambda record: record.update(MEGATRON)), None
    yield from odd(SECOND)
    for key in NUMBERS:
        text = json.dumps({**json.loads(valid), key: "@"})
        yield from ((f"{key} {raw}", holding(CONFIG, text.replace('"@"', raw).encode()), None) for raw in RAW)
    yield from odd(LAST)


def odd(tables: tuple[Odd, ...]) -> Changes:
    return ((name, edited(CONFIG, edit), refused) for table in tables for name, edit, refused in table.edits())
