"""What protects the past: parts that hook into the steps of a run and compose."""

from collections.abc import Callable, Mapping
from typing import Any

from rankwise.config import ReplaySettings, Section
from rankwise.strategies.base import Host, Strategy, Term, check_together
from rankwise.strategies.replay import Replay, ReplayBuffer

STRATEGIES: Mapping[str, tuple[type[Section], Callable[[Any, int], Strategy]]] = {
    Replay.name: (ReplaySettings, Replay),
}
"""Word in a config -> (schema of its settings, maker from settings and seed)."""

__all__ = ["STRATEGIES", "Host", "Replay", "ReplayBuffer", "Strategy", "Term", "check_together"]
