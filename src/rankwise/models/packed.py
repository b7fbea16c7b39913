"""Weights that lie in 4 bits on disk, as bitsandbytes writes them: looked over before that library unpacks them.

It believes what a weight says of its own shape, and its kernels read past the end of the memory where that is more than
there is; so sizes, dtypes and settings are compared here first. Only what `model.quantize = "nf4"` makes is taken.
"""

from __future__ import annotations

import importlib.util
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers import PreTrainedConfig

from rankwise.errors import DataError, StorageError
from rankwise.files import parse_json

KIND = "nf4"
STATE = ".quant_state.bitsandbytes__nf4"
LONGEST_STATE = 1 << 12
BLOCKS = (32, 64, 128, 256, 512, 1024, 2048, 4096)
FLOATS = ("float32", "float16", "bfloat16")
SETTINGS: Mapping[str, tuple[Any, ...]] = {
    "quant_method": ("bitsandbytes",),
    **dict.fromkeys(("load_in_4bit", "_load_in_4bit"), (True,)),
    **dict.fromkeys(("load_in_8bit", "_load_in_8bit", "llm_int8_has_fp16_weight"), (False,)),
    "llm_int8_enable_fp32_cpu_offload": (False,),
    "llm_int8_threshold": (6.0, 0.0),
    "bnb_4bit_quant_type": ("nf4",),
    "bnb_4bit_use_double_quant": (True, False),
    "bnb_4bit_compute_dtype": FLOATS,
    "bnb_4bit_quant_storage": ("uint8",),
}
"""Settings of `quantization_config`, and what each may be; that they ask for nothing else is what makes them safe."""
NEEDED = ("quant_method", "load_in_4bit", "bnb_4bit_quant_type")
SKIPPED = "llm_int8_skip_modules"
"""Names of modules left whole, which the library takes for patterns: only plain names are let through."""
REMEDY = 'take the whole weights, and put them into 4 bits with model.quantize = "nf4"'


def check_settings(file: Path, settings: object) -> None:
    """Refuse a `quantization_config` other than bitsandbytes' NF4; DataError names its method and the remedy."""
    values = settings if isinstance(settings, dict) else {"quant_method": settings}
    method = str(values.get("quant_method"))[:40]
    for key in (*NEEDED, *sorted(values.keys() - {*NEEDED, SKIPPED})):
        taken = SETTINGS.get(key, ())
        if not any(type(values.get(key)) is type(one) and values.get(key) == one for one in taken):
            said = f"with {key} = {values.get(key)!r}"[:120] if method == "bitsandbytes" else ""
            raise DataError(
                f"{file}: the weights are quantised by {method!r} {said}".rstrip() + f", not read; {REMEDY}"
            )
    skipped = values.get(SKIPPED) or []
    if not isinstance(skipped, list) or not all(re.fullmatch(r"[\w.]{1,200}", str(name), re.ASCII) for name in skipped):
        raise DataError(f"{file}: quantization_config.{SKIPPED} must be names of modules; get an intact copy")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise DataError(f"{file}: the weights are in 4 bits, which needs bitsandbytes; pip install rankwise[quant]")


def is_packed(config: PreTrainedConfig) -> bool:
    """Say whether a configuration that was checked is that of a base in 4 bits."""
    return bool(config.to_dict().get("quantization_config"))


def unpacked_shapes(folder: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Return `shapes` with those that 4-bit weights have when unpacked, and nothing of what belongs to these.

    Raises DataError for a weight that says other sizes than its tensors have, and where no weight is in 4 bits.
    """
    found = dict(shapes)
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            names = set(tensors.keys())
            for weight in (name.removesuffix(STATE) for name in sorted(names) if name.endswith(STATE)):
                parts = {name for name in names if name == weight or name.startswith(f"{weight}.")}
                shape = _checked(file, weight, {name: tensors.get_slice(name) for name in parts}, tensors)
                found = {name: held for name, held in found.items() if name not in parts} | {weight: shape}
    if found == dict(shapes):
        raise DataError(
            f"{folder / 'config.json'}: quantization_config says 4 bits, and no weight beside it is; get an intact copy"
        )
    return found


def _checked(file: Path, weight: str, parts: Mapping[str, Any], tensors: Any) -> tuple[int, ...]:
    """Return the shape of a packed weight once all that it says fits its tensors."""
    held = {name.removeprefix(weight): (part.get_dtype(), math.prod(part.get_shape())) for name, part in parts.items()}
    where = f"{file}: {weight!r}"
    if held[STATE][0] != "U8" or held[STATE][1] > LONGEST_STATE:
        raise DataError(f"{where}: the record of its shape is none; get an intact copy")
    try:
        said = parse_json(bytes(tensors.get_tensor(weight + STATE).tolist()), where)
    except StorageError as error:
        raise DataError(str(error)) from error
    match said:
        case {"quant_type": "nf4", "shape": [int(rows), int(columns)], "blocksize": int(size), "dtype": str(dtype)}:
            count = rows * columns
            known = min(rows, columns) > 0 and size in BLOCKS and dtype in FLOATS
            wanted = _wanted(said, count, size) if known else {}
            if wanted and held == {**wanted, STATE: held[STATE]}:
                return rows, columns
    raise DataError(f"{where}: what it says of its shape does not fit its tensors; get an intact copy")


def _wanted(said: Mapping[str, Any], count: int, size: int) -> dict[str, tuple[str, int]]:
    """Return dtype and length of each tensor of a weight with `count` values in blocks of `size`; nothing: unknown."""
    blocks = -(-count // size)
    common = {"": ("U8", -(-count // 2)), ".quant_map": ("F32", 16)}
    match said:
        case {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": float(offset)}:
            if math.isfinite(offset):
                inner = {".nested_absmax": ("F32", -(-blocks // 256)), ".nested_quant_map": ("F32", 256)}
                return {**common, ".absmax": ("U8", blocks), **inner}
            return {}
    return {} if any(key.startswith("nested") for key in said) else {**common, ".absmax": ("F32", blocks)}


def settle(module: nn.Module) -> bool:
    """Make 4-bit modules compute as those of `quantise` do, in float32; say whether there are any."""
    linear = [each for each in module.modules() if isinstance(each, nn.Linear)]
    found: list[Any] = [each for each in linear if not each.weight.is_floating_point()]  # Linear4bit
    for four in found:
        four.compute_dtype, four.compute_type_is_set = torch.float32, True
        four.support_avx512bf16_for_cpu = False  # as in `quantise`
    return bool(found)
