"""Where a base lies: a folder, or a copy of the hub's in the local cache; and what is refused at once."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from huggingface_hub import constants, snapshot_download
from transformers import AutoConfig, PreTrainedConfig

from rankwise.errors import DataError
from rankwise.models.checks import Explained

WANTED = ["*.json", "*.safetensors", "*.txt", "*.model"]
OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
RANDOM = frozenset({"vit_mae"})  # masks patches by chance in every forward pass: no features to speak of


def find(name: str, revision: str | None, trust_remote_code: bool) -> Path:
    """Return the folder of `name`: itself, or the hub's files in the local cache (only what is needed, never a pickle).

    Raises DataError where neither is to be had; nothing is asked of the network when the environment says offline.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.is_file() or name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name:
        remedy = "give the folder that holds config.json and model.safetensors, or a hub id"
        raise DataError(f"base {name!r}: no such folder; {remedy}")
    offline, wanted = is_offline(), [*WANTED, "*.py"] if trust_remote_code else WANTED
    try:
        found = snapshot_download(
            name, revision=revision, allow_patterns=wanted, ignore_patterns=["*/*"], local_files_only=offline
        )
    except (OSError, ValueError) as error:
        where = "offline, and not in the local cache" if offline else "no such folder, and the hub did not give it"
        remedy = "download it once with a connection (HF_HUB_OFFLINE=1 works afterwards), or give a local folder"
        raise DataError(f"base {name!r}: {where} ({type(error).__name__}); {remedy}") from error
    return Path(found)


def is_offline() -> bool:
    """Say whether the environment, now or when the hub's library was imported, forbids the network."""
    said = any(os.environ.get(key, "").lower() in ("1", "true", "yes", "on") for key in OFFLINE)
    return said or bool(constants.HF_HUB_OFFLINE)


def read_config(folder: Path, trust_remote_code: bool) -> PreTrainedConfig:
    """Read config.json. Raises DataError for an adapter and for pickled weights."""
    file = folder / "config.json"
    if (folder / "adapter_config.json").exists():
        raise DataError(f"{folder / 'adapter_config.json'}: an adapter, not a base; name the base it was trained on")
    if not any(folder.glob("*.safetensors")):
        pickles = sorted(path.name for path in folder.glob("*.bin"))
        met = f"only {pickles[0]}, a pickle, which is never read" if pickles else "no *.safetensors"
        raise DataError(f"{folder}: {met}; write the model again with save_pretrained(), as model.safetensors")
    if not file.exists():
        raise DataError(f"{folder}: no config.json; give a folder in the Hugging Face layout")
    with Explained(f"{file}: cannot be read as a model's configuration", "get an undamaged copy"):
        return AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)


def refuse_featureless(config: PreTrainedConfig, folder: Path) -> None:
    """Raise DataError for models without features of one input."""
    if config.is_encoder_decoder or config.model_type in RANDOM:
        file = folder / "config.json"
        raise DataError(f"{file}: model_type {config.model_type!r} has no features of one input; take an encoder")


def image_settings(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    """Read `size` in pixels, channel `mean` and `std`, from the image processor's file and the model's `config`."""
    values = _processor(folder)
    asked = values.get("crop_size") or values.get("size") or 224
    size = config.get("image_size") or (asked if isinstance(asked, int) else next(iter(asked.values())))
    if not isinstance(size, int):
        raise DataError(
            f"{folder / 'config.json'}: image_size {size!r} is not one number; take a base of square images"
        )
    if not values.get("do_normalize", True):
        return {"size": size, "mean": [0.0] * 3, "std": [1.0] * 3}
    return {"size": size, "mean": values.get("image_mean", [0.5] * 3), "std": values.get("image_std", [0.5] * 3)}


def _processor(folder: Path) -> dict[str, Any]:
    """Read the image processor's own settings, or nothing where no file holds any."""
    for file in (folder / "preprocessor_config.json", folder / "processor_config.json"):
        if not file.exists():
            continue
        try:
            read = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise DataError(f"{file}: not JSON ({error}); get an undamaged copy") from error
        if not isinstance(read, dict):
            raise DataError(f"{file}: holds a {type(read).__name__} instead of settings; get an undamaged copy")
        return read.get("image_processor", read)
    return {}
