"""A method as data: what the papers room hands to the loop, and what `rankwise methods` lists."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from rankwise.adapters import Gate, Identity, Pair
from rankwise.config import AdapterSettings
from rankwise.errors import UsageError

Identities = Literal["exact", "close", "moves"]


@dataclass(frozen=True)
class Phase:
    """A stretch of a task's training."""

    name: str = "fit"
    share: float = 1.0
    """Fraction of the task's steps; the learning rate's course starts anew in each phase."""
    live: Literal["all", "adapter", "head"] = "all"
    """What learns: everything the method trains, or only the adapter (base), or only the head."""


@dataclass(frozen=True)
class Method:
    """The parts only one method has, its defaults, and what it promises."""

    slug: str
    """Its name in configs and commands; also the name of its file, with dashes."""
    title: str
    paper: str
    """Where it was published."""
    axis: str
    """The seam it varies: gate, growth, live, order, memory."""
    parameters: str
    """Trained parameters as a formula."""
    gate: type[Gate] = Identity
    """Makes the gate from the settings under [adapter.gate]."""
    live: Literal["adapter", "base", "head"] = "adapter"
    """What learns besides the head's rows: an adapter, the whole base, or nothing."""
    growth: Literal["keep", "append"] = "keep"
    """Blocks: one through the stream, or a new one a task with old ones frozen."""
    order: Literal["stream", "at-once"] = "stream"
    """Tasks one after another, or all at once."""
    oracle: bool = False
    """True: the task of a test example is known, so its own block alone acts and only its task's classes are ranked."""
    phases: tuple[Phase, ...] = (Phase(),)
    identity_at_creation: Identities = "exact"
    """Whether a fresh adapter leaves the output exact (bit for bit), close (to rounding), or moves it."""
    identity_at_append: Identities = "exact"
    """The same for a block added later."""
    mergeable: bool = True
    """Whether the update can be folded into the base's weights."""
    peft: Literal["exact", "converted", "merged"] | None = "exact"
    """How it leaves for PEFT: as it is, converted to a LoRA, only merged, or not at all (None)."""
    refuses: tuple[str, ...] = ()
    """What it cannot do, with the reason."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Config values that suit the method, under the user's own."""

    def branch(self, settings: AdapterSettings, gate: Gate) -> Pair:
        """Return the branch for `settings` with `gate` between its factors."""
        return Pair(gate, settings.scale, settings.dropout, settings.init)

    def grows(self, settings: AdapterSettings) -> Literal["keep", "append"]:
        """Return how blocks come, the settings' word before the method's."""
        return settings.growth or self.growth

    def record(self) -> dict[str, Any]:
        """Return the public facts, as JSON values: a row of `rankwise methods`."""
        names = ("slug", "title", "paper", "axis", "identity_at_creation", "identity_at_append", "mergeable", "peft")
        values = {name: getattr(self, name) for name in names}
        return {**values, "parameters": self.parameters, "refuses": list(self.refuses)}


def check_phases(phases: Sequence[Phase]) -> None:
    """Refuse phases that do not make up a task."""
    if not phases or abs(sum(phase.share for phase in phases) - 1) > 1e-9:
        raise UsageError(f"phases take {[phase.share for phase in phases]} of a task's steps; the shares must sum to 1")
