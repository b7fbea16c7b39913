"""Encoders in the Hugging Face layout: safetensors only, and no code from the folder unless asked for."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    CLIPVisionModel,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    SiglipVisionModel,
)
from transformers.models.auto import modeling_auto
from transformers.utils import logging

from rankwise.errors import DataError
from rankwise.models import base, packed
from rankwise.models.base import Backbone, Pool
from rankwise.models.checks import Explained, check_folder
from rankwise.models.images import encode_images
from rankwise.models.language import Answers, form_of, language_of
from rankwise.models.sources import find, image_settings, read_config, refuse_featureless
from rankwise.models.text import encode_texts

VISION_PARTS = {"clip": CLIPVisionModel, "siglip": SiglipVisionModel}  # of a model of two towers, the one that sees
POOLED = frozenset({"clip", "clip_vision_model", "siglip", "siglip_vision_model"})
VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model", "spiece.model", "spm.model")
WRITERS = {"causal": AutoModelForCausalLM, "seq2seq": AutoModelForSeq2SeqLM}
COPY = "get an undamaged copy"
CLASS_TOKEN = frozenset({"vit", "deit", "beit", "data2vec-vision", "dinov2", "vit_msn"})


def load(
    name: str,
    pooling: str = "auto",
    max_length: int = 128,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    label: str = "",
    answers: Answers | None = None,
) -> Backbone:
    """Load the base in folder `name`, or of hub id `name`, as a frozen float32 Backbone whose name is `label`.

    Without `answers` it is an encoder (or the body of a decoder); with them it keeps its language head.

    The pooling "auto" means: text encoders, mean over the real tokens; decoders, the last real token; vision
    transformers, class token plus mean of the patch tokens; CLIP and SigLIP, the pooled output of the vision tower;
    other vision models, the mean over all places. Raises DataError where the folder, its weights or its configuration
    cannot be used, and UsageError for an unknown pooling.
    """
    folder = find(name, revision, trust_remote_code)
    check_folder(folder, trusted=trust_remote_code)
    config = read_config(folder, trust_remote_code)
    make = _encoder if answers is None else partial(_writer, answers=answers)
    backbone = make(label or name, folder, config, pooling, max_length, trust_remote_code)
    backbone.quantize = packed.KIND if packed.settle(backbone.module) else None
    backbone.fingerprint, backbone.folder = base.fingerprint(backbone.module), folder
    sample: Any = torch.zeros(1, 8, 8, dtype=torch.uint8) if backbone.modality == "image" else ["a"]
    # The configuration's name for the width differs from model to model: measure it.
    with Explained(f"{folder}: the model cannot read an input", COPY), torch.no_grad():
        backbone.dim = backbone.features(backbone.encode(sample)).shape[1]
    return backbone


def _encoder(
    label: str, folder: Path, config: PreTrainedConfig, pooling: str, max_length: int, trust_remote_code: bool
) -> Backbone:
    """Read a model that turns one input into features."""
    refuse_featureless(config, folder)
    read = _vision_part if config.model_type in VISION_PARTS else AutoModel.from_pretrained
    module = read_module(folder, config, trust_remote_code, read, **_without_pooler(config))
    if module.main_input_name == "pixel_values":
        encode = partial(encode_images, **image_settings(folder, module.config.to_dict()))
        pool = base.pool_named(pooling, "image", _vision_pool(config.model_type))
        return Backbone(label, module, "image", 0, "", encode, pool, ("pixel_values",))
    if module.main_input_name != "input_ids":
        raise DataError(f"{folder}: its inputs are {module.main_input_name!r}; a base reads images or text")
    limit = min(max_length, config.to_dict().get("max_position_embeddings") or max_length)
    encode = partial(encode_texts, tokenizer=read_tokenizer(folder, trust_remote_code), max_length=limit)
    pool = base.pool_named(pooling, "text", _text_pool(config.model_type))
    return Backbone(label, module, "text", 0, "", encode, pool)


def _writer(
    label: str,
    folder: Path,
    config: PreTrainedConfig,
    pooling: str,
    max_length: int,
    trust_remote_code: bool,
    *,
    answers: Answers,
) -> Backbone:
    """Read a model that answers a prompt in words; its features are those of the part that reads."""
    form = form_of(config, answers.form, str(folder / "config.json"))
    module = read_module(folder, config, trust_remote_code, WRITERS[form].from_pretrained)
    language = language_of(module, read_tokenizer(folder, trust_remote_code), answers, form, max_length)
    body = module.get_encoder() if form == "seq2seq" else module.base_model
    pool = base.pool_named(pooling, "text", base.mean_of_tokens if form == "seq2seq" else base.last_token)
    backbone = Backbone(label, module, "text", 0, "", language.encode, pool, language=language, body=body)
    backbone.arguments = ("input_ids", "attention_mask")
    return backbone


def read_module(
    folder: Path, config: PreTrainedConfig, trust_remote_code: bool, read: Callable[..., Any], **extra: Any
) -> PreTrainedModel:
    """Fill a model from the file by `read`: float32, frozen; every weight must be there.

    What the constructor draws for initial weights leaves the global generator as it was. Raises DataError.
    """
    options: dict[str, Any] = {"use_safetensors": True, "local_files_only": True, "output_loading_info": True}
    options |= {"config": config, "dtype": torch.float32, "trust_remote_code": trust_remote_code}
    options |= {"device_map": "cpu"} if packed.is_packed(config) else {}  # else the library takes a GPU by itself
    with Explained(f"{folder}: the weights cannot be read", COPY), torch.random.fork_rng(devices=[]), quietly():
        module, report = read(folder, **options, **extra)
    missing = sorted(report["missing_keys"]) + sorted(key for key, *_ in report["mismatched_keys"])
    if missing:
        shown = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        raise DataError(f"{folder}: the file lacks weights of {type(module).__name__}: {shown}; get the whole model")
    base.freeze(module, str(folder))
    return module


@contextmanager
def quietly() -> Iterator[None]:
    """Keep the library's bars and its table of weights to itself: what matters in it is checked and raised here."""
    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()


def _vision_part(folder: Path, *, config: PreTrainedConfig, trust_remote_code: bool, **options: Any) -> Any:
    """Read the vision tower of a model of two (whose code is always the library's own)."""
    vision = config.sub_configs["vision_config"](**config.to_dict()["vision_config"])
    return VISION_PARTS[config.model_type].from_pretrained(folder, config=vision, **options)


def _without_pooler(config: PreTrainedConfig) -> dict[str, bool]:
    """Tell models that ask that no pooler is wanted: its weights may be missing, and no adapter should land on it."""
    found = modeling_auto.MODEL_MAPPING.get(type(config), None)
    kinds = found if isinstance(found, tuple) else () if found is None else (found,)
    asks = [kind for kind in kinds if "add_pooling_layer" in inspect.signature(kind.__init__).parameters]
    return {"add_pooling_layer": False} if asks else {}


def read_tokenizer(folder: Path, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    """Read the tokenizer that lies beside the weights. Raises DataError."""
    remedy = "save it there with tokenizer.save_pretrained()"
    if not trust_remote_code and not any((folder / name).exists() for name in VOCABULARIES):
        raise DataError(f"{folder}: no tokenizer lies there; {remedy}")  # the library would make up an empty one
    with Explained(f"{folder}: no tokenizer can be read", remedy):
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)


def _text_pool(kind: str) -> Pool:
    """Choose the mean for encoders (each token sees all others) and the last token for decoders."""
    encoder = kind in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    decoder = kind in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    return base.last_token if decoder and not encoder else base.mean_of_tokens


def _vision_pool(kind: str) -> Pool:
    """Choose how a vision model's states become one row."""
    return base.pooled if kind in POOLED else base.class_and_patches if kind in CLASS_TOKEN else base.everywhere
