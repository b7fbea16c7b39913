"""How PEFT names its files and the tensors in them."""

from __future__ import annotations

from pathlib import Path

from rankwise.adapters import Site
from rankwise.errors import UsageError
from rankwise.storage import MANIFEST

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
KIND = "peft"
"""Of the saved folder that a checkpoint is."""
PREFIX = "base_model.model."

BASE = ".base_layer."
"""Stands in the name of a tensor of the base that a factor pair wraps."""
TOKENS = ".token_adapter.trainable_tokens_delta"
"""Ends the name of the rows of an embedding that were trained by themselves."""
TWICE = (".modules_to_save.", ".original_module.")
"""Stand in the names of tensors that are there under their plain name too, or that nothing uses."""
FACTORS = {
    "A.weight": "A",
    "B.weight": "B",
    "embedding_A": "A",
    "embedding_B": "B",
    "magnitude_vector": "magnitude",
    "magnitude_vector.weight": "magnitude",
}
"""What follows "<module>.lora_" in a name -> the factor."""


def is_peft(path: Path) -> bool:
    """Say whether `path` is the folder of an adapter that PEFT wrote; UsageError where several lie in it."""
    held = sorted(file.parent.name for file in path.glob(f"*/{CONFIG}"))
    if held and not any((path / name).is_file() for name in (CONFIG, MANIFEST)):
        raise UsageError(f"{path}: holds PEFT adapters in folders ({', '.join(held)}); name one, as {path / held[0]}")
    return (path / CONFIG).is_file()


def factor_names(site: Site) -> dict[str, str]:
    """Return factor -> the name of its tensor for a module of this site's kind."""
    pair = {"A": "embedding_A", "B": "embedding_B"} if site.kind == "embedding" else {"A": "A.weight", "B": "B.weight"}
    return {
        part: f"{PREFIX}{site.path}.lora_{name}" for part, name in (pair | {"magnitude": "magnitude_vector"}).items()
    }


def base_name(name: str, wrapped: bool) -> str:
    """Return how PEFT calls the base's tensor `name`, whose module a factor pair wraps or not."""
    path, _, leaf = name.rpartition(".")
    return f"{PREFIX}{path}{BASE}{leaf}" if wrapped else f"{PREFIX}{name}"
