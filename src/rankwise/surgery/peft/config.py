"""What a PEFT config says that its tensors do not: scales, and whether the checkpoint is one that is read."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from torch import nn

from rankwise.config import parse_record
from rankwise.errors import DataError, UsageError
from rankwise.models import Form, form_of_class
from rankwise.surgery.peft.naming import CONFIG

READ = {
    *("peft_type", "use_rslora", "use_dora", "lora_alpha", "alpha_pattern", "lora_dropout", "init_lora_weights"),
    *("modules_to_save", "trainable_token_indices", "ensure_weight_tying"),
}
"""Keys that are read."""

KNOWN_BY_TENSORS = {
    *("r", "rank_pattern", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
    *("fan_in_fan_out", "bias"),
}
"""Keys that choose modules and shapes: the tensors' names and shapes say the same, so a pattern in them never runs."""

NEUTRAL = {
    *("peft_version", "task_type", "auto_mapping", "base_model_name_or_path", "revision", "inference_mode"),
    *("eva_config", "megatron_config", "megatron_core", "qalora_group_size", "runtime_config"),
}
"""Keys that do not change what a trained LoRA computes."""

Finite = Annotated[float, Field(allow_inf_nan=False)]


@dataclass(frozen=True)
class Values:
    """The types of the keys that are read."""

    peft_type: str
    lora_alpha: Finite
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    use_rslora: bool = False
    use_dora: bool = False
    ensure_weight_tying: bool = False
    alpha_pattern: dict[str, Finite] = field(default_factory=dict)
    init_lora_weights: bool | str = True
    modules_to_save: list[str] = field(default_factory=list)
    trainable_token_indices: list[int] | dict[str, list[int]] = field(default_factory=list)


TASKS: Mapping[Form, str] = {"causal": "CAUSAL_LM", "seq2seq": "SEQ_2_SEQ_LM"}
"""Form of the base's language head -> task_type."""

PLAIN_INITS = (True, False, None, "gaussian", "eva", "orthogonal")
"""Starts after which the base is what it was; the others (pissa, olora, corda, loftq) also change its weights."""


def refuse_unread(config: Mapping[str, Any], path: Path) -> None:
    """Raise DataError, naming the key, where the checkpoint is of another type or uses what is not read."""
    where = path / CONFIG
    if not isinstance(config, dict):
        raise DataError(f"{where}: holds no table of settings; copy the file again")
    if config.get("peft_type") != "LORA":
        raise DataError(f"{where}: peft_type {config.get('peft_type')!r}; only LORA checkpoints are read")
    for key in sorted(set(config) - READ - KNOWN_BY_TENSORS - NEUTRAL):
        if config[key]:
            raise DataError(f"{where}: {key} = {config[key]!r} is not read; load it with peft itself")
    given = {each.name: config[each.name] for each in fields(Values) if config.get(each.name) is not None}
    try:
        parse_record(Values, given, str(where))
    except UsageError as error:
        raise DataError(str(error)) from error
    init = config.get("init_lora_weights")
    if init not in PLAIN_INITS:
        raise DataError(
            f"{where}: init_lora_weights = {init!r} has changed the base's weights too; convert the checkpoint "
            "with peft (path_initial_model_for_weight_conversion) or merge it there"
        )


def form_named(config: Mapping[str, Any]) -> Form | None:
    """Return the form of the language head of the base that a checkpoint was trained on; None: it names none.

    PEFT writes the task or, where it was told none, the base's class.
    """
    held = config.get("auto_mapping")
    named = str(held.get("base_model_class")) if isinstance(held, dict) else ""
    told: list[Form] = [form for form, task in TASKS.items() if task == config.get("task_type")]
    return told[0] if told else form_of_class(named)


def base_named(form: Form | None, module: nn.Module) -> dict[str, Any]:
    """Return what tells PEFT's Auto classes how to load the base: its task, or its class; neither for one of a user."""
    kind, home = type(module).__name__, type(module).__module__
    theirs = form is None and home.startswith("transformers.")
    mapping = {"base_model_class": kind, "parent_library": home} if theirs else None
    return {"task_type": TASKS[form] if form else None, "auto_mapping": mapping}


def scale_of(config: Mapping[str, Any], name: str, rank: int, path: Path) -> float:
    """Return alpha / rank (rank-stabilised: alpha / sqrt(rank)) of the module called `name`.

    Raises:
        DataError: a key of alpha_pattern is a regular expression beyond a name or the end of one.

    """
    alphas: Mapping[str, Any] = config.get("alpha_pattern") or {}
    for key in alphas:
        if not NAME.fullmatch(key):
            raise DataError(
                f"{path / CONFIG}: alpha_pattern {key!r} is a regular expression, which is never run; name modules by "
                "their ends"
            )
    alpha = float(next((alphas[key] for key in alphas if matches(key, name)), config["lora_alpha"]))
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


NAME = re.compile(r"\^?(?:[\w.-]|\\[.-])+\$?")
"""A module's path or the end of one, as PEFT writes and reads it in a pattern: dots bare or escaped."""


def matches(key: str, name: str) -> bool:
    r"""Say whether PEFT takes `key` (a `NAME`) for the module called `name`: as its path or as the end of it.

    A bare dot stands for any character, as it does for PEFT; `\.` for a dot; `^` asks for the whole path.

    >>> matches("q_proj", "layers.0.q_proj"), matches("proj", "layers.0.q_proj"), matches("^q_proj", "layers.0.q_proj")
    (True, False, False)
    """
    symbols = re.findall(r"\\?.", key.removeprefix("^").removesuffix("$"))
    tail = name[max(len(name) - len(symbols), 0) :]
    before = name[: len(name) - len(tail)]
    same = len(tail) == len(symbols) and all(s in (".", "\\" + c, c) for s, c in zip(symbols, tail, strict=True))
    return same and (not before or (before.endswith(".") and not key.startswith("^")))


def trained_rows(config: Mapping[str, Any], module: str, path: Path) -> Sequence[int]:
    """Return the rows of the embedding `module` that the checkpoint trained by themselves."""
    found = config.get("trainable_token_indices")
    named: Mapping[str, Any] = found if isinstance(found, dict) else {module: found}
    rows = next((named[key] for key in named if module == key or module.endswith(f".{key}")), None)
    if not isinstance(rows, list) or not all(isinstance(row, int) for row in rows):
        raise DataError(f"{path / CONFIG}: trainable_token_indices = {found!r} names no rows of {module!r}")
    return rows


def is_saved_whole(config: Mapping[str, Any], name: str) -> bool:
    """Say whether the base's tensor `name` belongs to a module that PEFT keeps a copy of (modules_to_save)."""
    saved: Iterable[str] = config.get("modules_to_save") or ()
    words = name.split(".")
    return any(".".join(words[:i]).endswith(key) for key in saved for i in range(1, len(words)))
