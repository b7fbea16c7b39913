"""Bases: `load_backbone` turns a name into a frozen model with its way of reading inputs and of answering."""

from __future__ import annotations

from typing import Any

from rankwise.errors import UsageError, nearest
from rankwise.models import embedded, hub
from rankwise.models.base import Backbone, fingerprint
from rankwise.models.language import Answers, Language
from rankwise.models.quantised import dequantise, quantise, quantised

__all__ = ["Answers", "Backbone", "Language", "dequantise", "fingerprint", "load_backbone", "quantise", "quantised"]

PREFIXES = ("embedded", "hub")
MINILM = "minilm"


def load_backbone(
    name: str,
    *,
    pooling: str = "auto",
    max_length: int = 128,
    revision: str | None = None,
    trust_remote_code: bool = False,
    quantize: str | None = None,
    answers: Answers | None = None,
) -> Backbone:
    """Load a base by name: `embedded:vit`, `minilm`, a folder in the Hugging Face layout, or a hub id (or `hub:<id>`).

    `pooling` is "auto", "mean", "cls" or, for text, "last"; `max_length` is in tokens and concerns text only. With
    `answers` the base keeps its language head and `max_length` is that of a prompt; without, it is an encoder. All
    parameters come from the file, in float32, in eval mode, with requires_grad False; the global random generator is
    left as it was. With `quantize` its linear weights are then put into 4 bits. Raises UsageError for a name that
    cannot exist and DataError, with the remedy, for files that cannot be found or used.
    """
    backbone = _loaded(name, pooling, max_length, answers, revision=revision, trust_remote_code=trust_remote_code)
    return backbone if quantize is None else quantised(backbone, quantize)


def _loaded(name: str, pooling: str, max_length: int, answers: Answers | None, **remote: Any) -> Backbone:
    prefix, colon, rest = name.partition(":")
    if name == MINILM:
        return embedded.load_minilm(pooling, max_length, answers=answers)
    if colon and prefix == "embedded":
        return embedded.load(rest, pooling, max_length, answers=answers)
    if colon and len(prefix) > 1 and prefix not in PREFIXES and "/" not in prefix:  # one letter is a Windows drive
        raise UsageError(f"base {name!r}: unknown prefix {prefix!r}: {nearest(prefix, PREFIXES)}")
    source = rest if colon and prefix == "hub" else name
    if "/" not in source and source in embedded.WEIGHTS:
        raise UsageError(f"base {name!r}: did you mean 'embedded:{source}'?")
    return hub.load(source, pooling, max_length, answers=answers, **remote)
