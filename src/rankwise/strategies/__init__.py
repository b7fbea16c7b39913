"""What protects the past: parts that hook into the steps of a run and compose."""

from collections.abc import Mapping

from rankwise.strategies.base import Setting, Strategy, check_together
from rankwise.strategies.confined import Confined, Confinement
from rankwise.strategies.consistency import Consistency
from rankwise.strategies.counted import Counted
from rankwise.strategies.derpp import Derpp
from rankwise.strategies.ema import Ema
from rankwise.strategies.ewc import Ewc
from rankwise.strategies.host import Copy, Host, Phase, Term, validation_loss
from rankwise.strategies.l2 import L2
from rankwise.strategies.lwf import Lwf
from rankwise.strategies.orthogonal import Orthogonal
from rankwise.strategies.replay import Replay, ReplayBuffer, ReplaySettings
from rankwise.strategies.sensitivity import Sensitivity

PARTS: tuple[type[Strategy], ...] = (Replay, Derpp, Ewc, Lwf, L2, Ema, Consistency, Orthogonal)

STRATEGIES: Mapping[str, type[Strategy]] = {part.name: part for part in PARTS}
"""The parts that no method brings along, by their word in a config."""

__all__ = [
    "STRATEGIES",
    "Confined",
    "Confinement",
    "Copy",
    "Counted",
    "Host",
    "Orthogonal",
    "Phase",
    "Replay",
    "ReplayBuffer",
    "ReplaySettings",
    "Sensitivity",
    "Setting",
    "Strategy",
    "Term",
    "check_together",
    "validation_loss",
]
