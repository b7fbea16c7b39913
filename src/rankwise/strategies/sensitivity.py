"""How much values and ranks matter to the loss, followed over many steps (AdaLoRA, arXiv 2303.10512, Eqs. 8-11)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from rankwise.adapters import banks_of
from rankwise.adapters.gates import WEIGHT


@dataclass
class Sensitivity:
    """Running means of |v g|, and of its spread, for each value v with gradient g.

    I' <- b1 I' + (1 - b1) |v g|;  U <- b2 U + (1 - b2) ||v g| - I'|;  score = I' U
    """

    beta1: float
    """b1, of the running mean."""
    beta2: float
    """b2, of the running mean of the spread."""
    means: dict[str, Tensor] = field(default_factory=dict)
    """I' as "<name>.mean" and U as "<name>.spread"."""

    @torch.no_grad()
    def take(self, name: str, parameter: nn.Parameter) -> Tensor:
        """Return I' U of each value, after taking this step's gradient into both; `name` tells parameters apart."""
        now = torch.zeros_like(parameter) if parameter.grad is None else (parameter * parameter.grad).abs()
        zero = torch.zeros_like(now)
        mean = self.beta1 * self.means.get(f"{name}.mean", zero).to(now) + (1 - self.beta1) * now
        before = self.means.get(f"{name}.spread", zero).to(now)
        spread = self.beta2 * before + (1 - self.beta2) * (now - mean).abs()
        self.means.update({f"{name}.mean": mean, f"{name}.spread": spread})
        return mean * spread

    def take_all(self, model: nn.Module) -> Tensor:
        """Take this step's gradients in; return score(w) + mean score(P) + mean score(Q) of each rank: [R].

        The ranks of all sites stand one after another.
        """
        found = []
        for site, (_, bank) in banks_of(model).items():
            score = {name: self.take(f"{site}/{name}", bank.live[name]) for name in ("A", "B", WEIGHT)}
            found.append((score[WEIGHT] + score["A"].mean(1) + score["B"].mean(0)).cpu())
        return torch.cat(found)

    def restore(self, means: Mapping[str, Tensor]) -> None:
        """Go on from copies of these means."""
        self.means = {name: tensor.clone() for name, tensor in means.items()}
