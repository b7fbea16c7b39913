"""A base's folder looked over before any library reads it: links, pickles, sizes that lie, code that is to be fetched.

What a library below may do with a hostile file is bounded here: it gets plain files of the folder itself, headers of
tensors that were checked, JSON within limits, and a configuration whose sizes are those of the tensors.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from rankwise.errors import DataError, StorageError
from rankwise.files import check_plain, load_json
from rankwise.models import packed
from rankwise.tensors import declared

INDEX = "model.safetensors.index.json"
SETTINGS = ("config.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json", INDEX)
READ = ("*.json", "*.safetensors", "*.txt", "*.model")
LAYERS = (
    "num_hidden_layers",
    "num_layers",
    "n_layer",
    "n_layers",
    "encoder_layers",
    "decoder_layers",
    "num_decoder_layers",
)
SIZES = (
    *("hidden_size", "d_model", "d_ff", "d_kv", "n_embd", "n_inner", "dim"),
    *("hidden_dim", "ffn_dim", "embedding_size", "num_attention_heads", "num_heads", "n_head", "num_channels"),
)
WIDTHS = ("hidden_size", "d_model", "n_embd", "dim", "embedding_size")
"""Columns of a table of words, rows of a matrix within a layer: by one name or another."""
POSITIONS = ("max_position_embeddings", "n_positions", "n_ctx", "model_max_length")
LONGEST = 1 << 24
"""Positions that no base has: tables of them are made when it is."""
FETCHED = ("attn_implementation", "_attn_implementation", "_attn_implementation_internal", "_experts_implementation")
PRECISIONS = (None, "auto", "float32", "float16", "bfloat16", "float64")


RAISED = (
    *(OSError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError, AssertionError, ImportError),
    *(RuntimeError, SafetensorError, StrictDataclassError),
)
"""What transformers, safetensors, torch and the hub's library raise over files that are damaged or altered: most of
them were met in tests/unbreakable. Memory that runs out is none of it."""


class Explained(AbstractContextManager[None]):
    """What a library raises over a file becomes a DataError that names the file and the remedy.

    That is RAISED, and `Exception` itself but none of its kinds: so `tokenizers` refuses a file.
    """

    def __init__(self, failure: str, remedy: str) -> None:
        """`failure` and `remedy` come before and after the library's own words."""
        self.failure, self.remedy = failure, remedy

    def __enter__(self) -> None:
        """Nothing."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Raise DataError in the place of a library's error."""
        if isinstance(error, RAISED) or type(error) is Exception:
            said = " ".join(str(error).split())[:1000] or type(error).__name__
            raise DataError(f"{self.failure} ({said}); {self.remedy}") from error


def check_folder(folder: Path, *, trusted: bool = False) -> None:
    """Refuse a base's folder that leads elsewhere, lies about its sizes or asks for code; DataError names the file.

    Args:
        folder: in the layout of Hugging Face; whether all is there is not asked.
        trusted: leave the sizes alone, as the code that comes with the model reads them (trust_remote_code).

    """
    try:
        for file in sorted(file for pattern in READ for file in folder.glob(pattern)):
            check_plain(file, folder)
        settings = {name: load_json(folder / name) for name in SETTINGS if (folder / name).exists()}
        files = sorted(folder.glob("*.safetensors"))
        shapes = {name: shape for file in files for name, shape in declared(file).items()}
    except StorageError as error:
        raise DataError(str(error)) from error
    for name, values in settings.items():
        if not isinstance(values, dict):
            raise DataError(f"{folder / name}: holds a {type(values).__name__} instead of settings; get an intact copy")
    _check_index(folder, settings.get(INDEX))
    file, tables = folder / "config.json", list(_tables(settings.get("config.json", {})))
    quantised = [table["quantization_config"] for table in tables if table.get("quantization_config")]
    for each in quantised:
        packed.check_settings(file, each)
    if quantised:
        shapes = packed.unpacked_shapes(folder, shapes)
    for table in tables if shapes and not trusted else ():
        _check_config(file, table, list(shapes.values()))


def _check_index(folder: Path, index: Mapping[str, Any] | None) -> None:
    """Refuse a list of parts that names anything but tensors' files in the folder."""
    if index is None:
        return
    parts = index.get("weight_map")
    held = {file.name for file in folder.glob("*.safetensors")}
    if not isinstance(parts, dict) or not parts or not all(isinstance(part, str) for part in parts.values()):
        raise DataError(f"{folder / INDEX}: 'weight_map' must map tensors to files; get an intact copy")
    if missing := sorted(set(parts.values()) - held):
        raise DataError(f"{folder / INDEX}: names {missing[0]!r}, which is no *.safetensors file of this folder")


def _tables(config: Mapping[str, Any], depth: int = 4) -> Iterator[Mapping[str, Any]]:
    """Yield a configuration and those of its parts."""
    yield config
    for value in config.values():
        if isinstance(value, dict) and depth:
            yield from _tables(value, depth - 1)


def _check_config(file: Path, config: Mapping[str, Any], shapes: list[tuple[int, ...]]) -> None:
    largest = max((size for shape in shapes for size in shape), default=0)
    # A size that no tensor has, as its part is not in the file or not in use: its matrix is no larger than the file.
    width = max((config[key] for key in WIDTHS if isinstance(config.get(key), int)), default=largest)
    unused = max(largest, sum(map(math.prod, shapes)) // max(width, 1))
    limits = {
        **dict.fromkeys(LAYERS, len(shapes)),
        **dict.fromkeys(SIZES, largest),
        **dict.fromkeys(POSITIONS, LONGEST),
        **dict.fromkeys(("vocab_size", "intermediate_size"), unused),
    }
    for key in sorted(limits.keys() & config.keys()):
        if not _fits(config[key], limits[key]):
            raise DataError(f"{file}: {key} = {config[key]!r} does not fit the tensors beside it; get an intact copy")
    for key in sorted({*FETCHED} & config.keys()):
        if config[key] is not None and (not isinstance(config[key], str) or {"/", ":", "."} & {*config[key]}):
            raise DataError(f"{file}: {key} = {config[key]!r} asks for code from elsewhere; take the key out")
    for key in ("dtype", "torch_dtype"):
        if not isinstance(config.get(key), str | None) or config.get(key) not in PRECISIONS:
            raise DataError(f"{file}: {key} = {config[key]!r}; known: float32, float16, bfloat16, float64")


def _fits(value: Any, limit: int) -> bool:
    """Say whether a size, or one for each layer or part, is a whole number from 0 to `limit`; None: not given."""
    held = value if isinstance(value, list) else value.values() if isinstance(value, dict) else [value]
    return value is None or all(isinstance(n, int | float) and 0 <= n <= limit and n % 1 == 0 for n in held)
