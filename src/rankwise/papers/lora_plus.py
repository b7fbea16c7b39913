"""LoRA+: the up factor learns faster than the down factor (arXiv 2402.12354).

    A <- A - lr AdamW(g_A);    B <- B - ratio lr AdamW(g_B)

| symbol | shape | meaning |
|---|---|---|
| g_A, g_B | [r, in], [out, r] | gradients of the factors |
| ratio | number | 16 in the paper |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from rankwise.adapters import banks_of
from rankwise.config import Positive
from rankwise.errors import ConflictError
from rankwise.learning.recipe import Method
from rankwise.strategies import Host, Strategy


@dataclass(frozen=True)
class Settings:
    """`[adapter.dynamics] kind = "lora-plus"`."""

    ratio: Positive = 16.0
    """lr of the up factors (B) over train.lr, which the others have. Paper: 16, with a lower train.lr."""


class LoraPlus(Strategy):
    """Gives the run's own rule two groups: up factors at ratio * lr, what else a site learns at lr."""

    name = "lora-plus"
    Settings = Settings
    writes = {"the factors' rule": "set"}
    needs_sequence = False
    needs_adapter = True

    def fits(self, host: Host) -> None:
        """Refuse a method none of whose up factors learns."""
        banks = [bank for _, bank in banks_of(host.model).values()]
        if not any(spec.role == "up" and spec.learns for bank in banks for spec in bank.specs.values()):
            raise ConflictError(
                f"adapter.dynamics {self.name!r} speeds up the up factors, and this method has none that learns; "
                "leave adapter.dynamics out"
            )

    def optimizer(self, host: Host, named: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer | None:
        """Take over what the sites learn."""
        free, fast, rest = set(named.values()), [], []
        for _, bank in banks_of(host.model).values():
            for name, parameter in bank.live.items():
                if parameter in free:
                    (fast if bank.specs[name].role == "up" else rest).append(parameter)
        rates = ((rest, host.train.lr), (fast, self.settings.ratio * host.train.lr))
        groups = [{"params": share, "lr": lr} for share, lr in rates if share]
        return host.rule(groups) if groups else None


METHOD = Method(
    slug="lora-plus",
    title="LoRA+: the up factor learns faster",
    paper="arXiv 2402.12354 (ICML 2024)",
    axis="dynamics: a learning rate for each factor",
    dynamics=LoraPlus,
    parameters="rank * (in + out) a site",
    refuses=("branches without an up factor that learns",),
    defaults={"train": {"lr": 3e-4}},
)
