"""What other libraries call our keys, and where a key stands that was written in another table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

ALPHA = "adapter.scale = alpha / rank"
THEIRS = {
    "r": "adapter.rank",
    "lora_rank": "adapter.rank",
    "alpha": ALPHA,
    "lora_alpha": ALPHA,
    "lora_dropout": "adapter.dropout",
    "target_modules": "adapter.sites",
    "exclude_modules": "adapter.exclude",
    "layers_to_transform": "adapter.layers",
    "init_lora_weights": "adapter.init",
    "lr": "train.lr",
    "learning_rate": "train.lr",
    "num_epochs": "train.epochs",
    "num_train_epochs": "train.epochs",
    "max_steps": "train.steps",
    "train_batch_size": "train.batch_size",
    "per_device_train_batch_size": "train.batch_size",
    "per_device_eval_batch_size": "train.eval_batch_size",
    "gradient_accumulation_steps": "train.accumulate",
    "max_grad_norm": "train.clip",
    "lr_scheduler_type": "train.schedule",
    "warmup_ratio": "train.warmup",
    "optim": "train.optimizer",
    "bf16": "train.precision",
    "logging_steps": "train.log_every",
    "dataloader_num_workers": "train.workers",
    "group_by_length": "train.bucket",
    "model_name": "model.name",
    "model_name_or_path": "model.name",
    "max_seq_length": "model.max_length",
}
"""A word of PEFT, of transformers or of common speech -> our key."""


def ours(key: str, tables: Mapping[str, Sequence[str]]) -> str | None:
    """Return the key that `key` stands for: what it is here, or the one place where a table has it.

    Args:
        key: one word.
        tables: the keys of each table by its name; "" is the whole config.

    >>> ours("lora_alpha", {}), ours("seed", {"": ["seed"], "model": ["name"]}), ours("x", {})
    ('adapter.scale = alpha / rank', 'seed', None)
    """
    places = [f"{table}.{key}".lstrip(".") for table, keys in tables.items() if key in keys]
    return THEIRS.get(key.lower(), places[0] if len(places) == 1 else None)
