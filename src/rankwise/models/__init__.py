"""Bases: `load_backbone` turns a name into a frozen model with its way of reading inputs and of answering."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rankwise.config.bases import EMBEDDED, HUB, MINILM, check_name
from rankwise.models import embedded, hub
from rankwise.models.base import Backbone, fingerprint
from rankwise.models.language import Answers, Form, Language, form_of_class
from rankwise.models.quantised import dequantise, quantise, quantised

__all__ = [
    "Answers",
    "Backbone",
    "Form",
    "Language",
    "dequantise",
    "fingerprint",
    "form_of_class",
    "load_backbone",
    "quantise",
    "quantised",
]


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
    left as it was. With `quantize` its linear weights are then put into 4 bits, unless they came so. Raises UsageError
    for a name that cannot exist and DataError, with the remedy, for files that cannot be found or used.
    """
    backbone = _loaded(name, pooling, max_length, answers, revision=revision, trust_remote_code=trust_remote_code)
    return backbone if quantize in (None, backbone.quantize) else quantised(backbone, quantize)


def _loaded(name: str, pooling: str, max_length: int, answers: Answers | None, **remote: Any) -> Backbone:
    if name == MINILM:
        return embedded.load_minilm(pooling, max_length, answers=answers)
    if not Path(name).expanduser().is_dir():
        check_name(name, "base ")
    prefix, colon, rest = name.partition(":")
    if colon and prefix == EMBEDDED:
        return embedded.load(rest, pooling, max_length, answers=answers)
    source = rest if colon and prefix == HUB else name
    return hub.load(source, pooling, max_length, answers=answers, **remote)
