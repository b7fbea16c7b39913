"""The one schema of a run: every key with its meaning, unit and default. Light: it loads neither torch nor models."""

from rankwise.config.load import load_config, merged, parse, parse_record, read_config, to_toml
from rankwise.config.numbers import Count, Fraction, NotNegative, Portion, Positive, Share
from rankwise.config.objective import ClassifySettings, LanguageSettings, ObjectiveSettings
from rankwise.config.schema import (
    AdapterSettings,
    Config,
    ModelSettings,
    Section,
    TrainSettings,
)
from rankwise.config.stream import Kind, Order, StreamSettings, TaskSettings

__all__ = [
    "AdapterSettings",
    "ClassifySettings",
    "Config",
    "Count",
    "Fraction",
    "Kind",
    "LanguageSettings",
    "ModelSettings",
    "NotNegative",
    "ObjectiveSettings",
    "Order",
    "Portion",
    "Positive",
    "Section",
    "Share",
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
