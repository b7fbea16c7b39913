"""What protects the past: parts that hook into the steps of a run and compose."""

from collections.abc import Mapping

from rankwise.strategies.base import Copy, Host, Phase, Setting, Strategy, Term, check_together
from rankwise.strategies.orthogonal import Orthogonal
from rankwise.strategies.replay import Replay, ReplayBuffer, ReplaySettings

STRATEGIES: Mapping[str, type[Strategy]] = {part.name: part for part in (Orthogonal, Replay,)}
"""The parts that no method brings along, by their word in a config."""

__all__ = [
    "STRATEGIES",
    "Copy",
    "Host",
    "Orthogonal",
    "Phase",
    "Replay",
    "ReplayBuffer",
    "ReplaySettings",
    "Setting",
    "Strategy",
    "Term",
    "check_together",
]
