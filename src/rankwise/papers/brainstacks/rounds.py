"""A round of boosting: its best values by validation loss, and when it has gone on for long enough."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class Best:
    """Watches the validation loss of one round."""

    def __init__(self) -> None:
        """Start a round."""
        self.steps, self.misses, self.loss = 0, 0, torch.inf
        self.values: dict[str, Tensor] = {}

    def note(self, loss: float, live: Mapping[str, Tensor]) -> None:
        """Take note of a validation loss; keep the live values if there was no better one."""
        self.misses = 0 if loss < self.loss else self.misses + 1
        if loss < self.loss:
            self.loss = loss
            self.values = {name: value.detach().clone() for name, value in live.items()}

    @torch.no_grad()
    def put_back(self, live: Mapping[str, Tensor]) -> None:
        """Write the best values into the live ones."""
        for name, value in live.items():
            value.copy_(self.values[name])
        self.values = {}

    def state(self) -> dict[str, Tensor]:
        """Return all of it."""
        numbers = torch.tensor([self.steps, self.misses, self.loss], dtype=torch.float64)
        return {"numbers": numbers, **{f"values/{name}": value for name, value in self.values.items()}}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take it back."""
        steps, misses, self.loss = state["numbers"].tolist()
        self.steps, self.misses = int(steps), int(misses)
        self.values = {name.removeprefix("values/"): t for name, t in state.items() if name != "numbers"}
