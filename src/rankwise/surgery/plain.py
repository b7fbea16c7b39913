"""A model without an adapter, written in the layout of Hugging Face, with what its base needs to read inputs."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import BinaryIO

from safetensors import SafetensorError
from transformers import PreTrainedModel

from rankwise.errors import StorageError, UsageError
from rankwise.files import TEMPORARY, Content, explained, remove
from rankwise.models.hub import quietly
from rankwise.storage import write_folder

KIND = "model"
READERS = ("*token*", "vocab*", "merges.txt", "*.model", "*processor*", "special_tokens*", "generation_config.json")
"""Files of a base that say how inputs become tensors; the weights and their configuration are written anew."""


def write_plain(module: object, source: Path | None, out: Path, extra: Mapping[str, Content]) -> None:
    """Write `module` as the new folder `out`: config.json, model.safetensors, what reads inputs, and `extra` files.

    Args:
        module: a model of transformers, no adapter on it.
        source: the folder its base was loaded from, whose tokenizer or image processor comes along.
        out: the folder; it appears whole or not at all.
        extra: further files, by name.

    Raises:
        UsageError: `module` is no model of transformers.
        StorageError: `out` or a temporary folder cannot be written.

    """
    if not isinstance(module, PreTrainedModel):
        raise UsageError(f"{type(module).__name__} is no model of transformers; save its state_dict yourself")
    with _scratch(out) as place:
        _save(module, place)
        written = {file.name: file for file in place.iterdir()}
        readers = [file for pattern in READERS for file in (source.glob(pattern) if source else ())]
        found = {file.name: file for file in readers if file.is_file() and file.suffix != ".safetensors"} | written
        files: dict[str, Content] = {name: partial(_copy, file) for name, file in found.items()}
        write_folder(out, {**files, **extra}, kind=KIND)


@contextmanager
def _scratch(out: Path) -> Iterator[Path]:
    """Make a temporary folder, removed at the end as far as it can be."""
    with explained(Path(tempfile.gettempdir()), "cannot be written"):
        place = Path(tempfile.mkdtemp(prefix=f".{out.name}{TEMPORARY}"))
    try:
        yield place
    finally:
        remove(place)


def _save(module: PreTrainedModel, place: Path) -> None:
    """Let transformers write a model; its own errors do not say what to do."""
    with explained(place, "cannot be written"), quietly():
        try:
            module.save_pretrained(place)
        except SafetensorError as error:
            remedy = "free space there, or name another place for temporary files with TMPDIR"
            raise StorageError(f"{place}: cannot be written: {error}; {remedy}") from error


def _copy(source: Path, target: BinaryIO) -> None:
    with source.open("rb") as file:
        shutil.copyfileobj(file, target)
