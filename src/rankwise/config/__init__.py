"""The one schema of a run: every key with its meaning, unit and default. Light: it loads neither torch nor models."""

from rankwise.config.load import load_config, merged, parse, parse_record, read_config, to_toml
from rankwise.config.schema import (
    AdapterSettings,
    ClassifySettings,
    Config,
    ModelSettings,
    ReplaySettings,
    Section,
    TrainSettings,
)
from rankwise.config.stream import Kind, Order, StreamSettings, TaskSettings

__all__ = [
    "AdapterSettings",
    "ClassifySettings",
    "Config",
    "Kind",
    "ModelSettings",
    "Order",
    "ReplaySettings",
    "Section",
    "StreamSettings",
    "TaskSettings",
    "TrainSettings",
    "load_config",
    "merged",
    "parse",
    "parse_record",
    "read_config",
    "to_toml",
]
