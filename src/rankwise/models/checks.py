"""A base's folder looked over before any library reads it: links, pickles, sizes that lie, code that is to be fetched.

What a library below may do with a hostile file is bounded here: it gets plain files of the folder itself, headers of
tensors that were checked, JSON within limits, and a configuration whose sizes are those of the tensors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any

from rankwise.errors import DataError, RankwiseError, StorageError
from rankwise.files import check_plain, load_json
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
    *("hidden_size", "intermediate_size", "vocab_size", "d_model", "d_ff", "d_kv", "n_embd", "n_inner", "dim"),
    *("hidden_dim", "ffn_dim", "embedding_size", "num_attention_heads", "num_heads", "n_head", "num_channels"),
)
POSITIONS = ("max_position_embeddings", "n_positions", "n_ctx", "model_max_length")
LONGEST = 1 << 24
"""Positions that no base has: tables of them are made when it is."""
FETCHED = ("attn_implementation", "_attn_implementation", "_attn_implementation_internal", "_experts_implementation")
PRECISIONS = (None, "auto", "float32", "float16", "bfloat16", "float64")


class Explained(AbstractContextManager[None]):
    """Whatever a library raises over a file becomes a DataError that names the file and the remedy.

    Libraries that read foreign files raise every kind of error over hostile ones, bare `Exception` among them.
    """

    def __init__(self, failure: str, remedy: str) -> None:
        """`failure` and `remedy` come before and after the library's own words."""
        self.failure, self.remedy = failure, remedy

    def __enter__(self) -> None:
        """Nothing."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Raise DataError in the place of an error that is not ours."""
        if isinstance(error, Exception) and not isinstance(error, RankwiseError):
            said = " ".join(str(error).split())[:1000] or type(error).__name__
            raise DataError(f"{self.failure} ({said}); {self.remedy}") from error


def check_folder(folder: Path, *, trusted: bool = False) -> None:
    """Refuse a base's folder that leads elsewhere, lies about its sizes or asks for code; DataError names the file.

    Args:
        folder: in the layout of Hugging Face; whether all is there is not asked.
        trusted: leave the configuration alone, as the code that comes with the model reads it (trust_remote_code).

    """
    try:
        for file in sorted(file for pattern in READ for file in folder.glob(pattern)):
            check_plain(file, folder)
        settings = {name: load_json(folder / name) for name in SETTINGS if (folder / name).exists()}
        shapes = [shape for file in sorted(folder.glob("*.safetensors")) for shape in declared(file).values()]
    except StorageError as error:
        raise DataError(str(error)) from error
    for name, values in settings.items():
        if not isinstance(values, dict):
            raise DataError(f"{folder / name}: holds a {type(values).__name__} instead of settings; get an intact copy")
    _check_index(folder, settings.get(INDEX))
    if shapes and not trusted:
        for table in _tables(settings.get("config.json", {})):
            _check_config(folder / "config.json", table, shapes)


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
    limits = {
        **dict.fromkeys(LAYERS, len(shapes)),
        **dict.fromkeys(SIZES, largest),
        **dict.fromkeys(POSITIONS, LONGEST),
    }
    for key in sorted(limits.keys() & config.keys()):
        value = config[key]
        sizes = value if isinstance(value, list) else [value]  # some bases have a size for each layer
        if value is not None and not all(isinstance(size, int) and 0 <= size <= limits[key] for size in sizes):
            raise DataError(f"{file}: {key} = {value!r} does not fit the tensors beside it; get an intact copy")
    for key in sorted({*FETCHED} & config.keys()):
        if config[key] is not None and (not isinstance(config[key], str) or {"/", ":", "."} & {*config[key]}):
            raise DataError(f"{file}: {key} = {config[key]!r} asks for code from elsewhere; take the key out")
    for key in ("dtype", "torch_dtype"):
        if not isinstance(config.get(key), str | None) or config.get(key) not in PRECISIONS:
            raise DataError(f"{file}: {key} = {config[key]!r}; known: float32, float16, bfloat16, float64")
    if config.get("quantization_config"):
        raise DataError(f"{file}: the weights are quantised, which is not read; take the whole ones and model.quantize")
