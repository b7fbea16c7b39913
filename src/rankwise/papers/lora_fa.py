"""LoRA-FA: the down factor stays as it was drawn, only the up factor learns (arXiv 2308.03303).

    y = W x + s B A x;    A stays at its Kaiming draw, B <- B - lr AdamW(g_B)
    project = true:  g_B <- (1/s^2) g_B (A A^T + ridge)^-1, the best image of the full gradient in A's rows

| symbol | shape | meaning |
|---|---|---|
| g_B | [out, r] | gradient of B |
"""

from __future__ import annotations

from dataclasses import dataclass

from rankwise.adapters import adapter_of, banks_of
from rankwise.adapters.paired import Ridge, closed_form, wide
from rankwise.config import NotNegative
from rankwise.errors import ConflictError
from rankwise.learning.recipe import Method
from rankwise.strategies import Host, Strategy


@dataclass(frozen=True)
class Settings:
    """`[adapter.dynamics] kind = "lora-fa"`."""

    project: bool = False
    """Replace g_B by (1/s^2) g_B (A A^T + ridge)^-1: the weight then moves by its gradient, projected on A's rows."""
    ridge: NotNegative = 1e-6
    """Added to the diagonal of A A^T."""


class LoraFa(Strategy):
    """Nothing, or the exact projection; that A does not learn is a setting of the pair (adapter.form.fixed).

    As A has no gradient, a backward keeps A x, `rank` numbers a token, in the place of x.
    """

    name = "lora-fa"
    Settings = Settings
    reads = frozenset({"gradients", "live"})
    needs_sequence = False
    needs_adapter = True

    def fits(self, host: Host) -> None:
        """Refuse, where the gradient of B is to be projected, a pair whose A learns, or no pair."""
        for site, bank in banks_of(host.model).values() if self.settings.project else ():
            if "A" not in bank.specs or bank.specs["A"].learns or "B" not in bank.specs or not bank.specs["B"].learns:
                raise ConflictError(f'{site.name!r}: project = true needs adapter.form.fixed = ["A"]; set it')

    def shape(self, host: Host, step: int) -> None:
        """Project the gradient of every B, where the settings say so."""
        if not self.settings.project:
            return
        scale, ridge = adapter_of(host.model).branch.scale, Ridge(self.settings.ridge)
        for site, bank in banks_of(host.model).values():
            gradient, a = bank.live["B"].grad, wide(bank.fixed.tensors()["A"])
            if gradient is not None:
                gradient.copy_(closed_form(wide(gradient).T, a, scale * site.scale, ridge).T)


METHOD = Method(
    slug="lora-fa",
    title="LoRA-FA: the down factor is frozen at its draw",
    paper="arXiv 2308.03303",
    axis="live",
    dynamics=LoraFa,
    parameters="rank * out a site; rank * (in + out) stored",
    defaults={"adapter": {"form": {"fixed": ["A"]}}},
)
