"""A method as data: what the papers room hands to the loop, and what `rankwise methods` lists."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn

from rankwise.adapters import Branch, Gate, Identity, Init, Pair, Site, pick_sites
from rankwise.adapters.inits import KAIMING
from rankwise.config import AdapterSettings, TrainSettings
from rankwise.errors import ConflictError, UsageError
from rankwise.strategies import Phase, Strategy
from rankwise.streams import Stream, Task, concat

Identities = Literal["exact", "close", "moves"]


def plain_scale(scale: float, rank: int) -> float:
    """Return the factor as it is configured, whatever the rank."""
    return scale


def rank_stabilised(scale: float, rank: int) -> float:
    """Return alpha / sqrt(rank) for scale = alpha / rank (rsLoRA, arXiv 2312.03732).

    >>> rank_stabilised(2.0, 16)
    8.0
    """
    return scale * math.sqrt(rank)


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
    form: type[Branch] = Pair
    """Makes the branch, with the settings under [adapter.form]."""
    init: Init = KAIMING
    """Start of the factors, unless adapter.init names another."""
    dynamics: type[Strategy] | None = None
    """How gradients become updates, with the settings under [adapter.dynamics]; None: the optimiser alone decides."""
    kinds: tuple[str, ...] = ("linear", "transposed", "embedding", "conv2d")
    """Kinds of module it can be put on."""
    scaling: Callable[[float, int], float] = plain_scale
    """(adapter.scale, rank) -> the factor on the update."""
    live: Literal["adapter", "base", "head"] = "adapter"
    """What learns besides the head's rows: an adapter, the whole base, or nothing."""
    growth: Literal["keep", "append", "planned"] = "keep"
    """Blocks: one through the stream, a new one a task with old ones frozen, or as the method's dynamics say."""
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

    def places(self, model: nn.Module, settings: AdapterSettings) -> tuple[Site, ...]:
        """Return the sites that `settings` choose in `model`; UsageError for a kind the method does not take."""
        sites = pick_sites(model, settings.sites, layers=settings.layers, exclude=settings.exclude)
        for site in sites:
            if site.kind not in self.kinds:
                raise UsageError(
                    f"adapter.sites: {site.name!r} is of kind {site.kind!r}, method {self.slug!r} takes "
                    f"{', '.join(self.kinds)}; put it into adapter.exclude"
                )
        return sites

    def grows(self, settings: AdapterSettings) -> Literal["keep", "append", "planned"]:
        """Return how blocks come, the settings' word before the method's."""
        return settings.growth or self.growth

    def elsewhere(self) -> str:
        """Say what of it is no part of a module, and where that acts; empty: it is all in its adapter."""
        kinds = ", ".join(repr(part["kind"]) for part in self.defaults.get("strategy", ()))
        own = "" if self.dynamics is None else f"its dynamics {self.dynamics.name!r} act in rankwise.run only"
        brought = f"its strategies {kinds} act in rankwise.run, or as far as they can through rankwise.learning"
        return "; ".join(said for said in (own, brought if kinds else "") if said)

    def record(self) -> dict[str, Any]:
        """Return the public facts, as JSON values: a row of `rankwise methods`."""
        names = ("slug", "title", "paper", "axis", "identity_at_creation", "identity_at_append", "mergeable", "peft")
        values = {name: getattr(self, name) for name in names}
        return {**values, "parameters": self.parameters, "refuses": list(self.refuses)}


def check_phases(phases: Sequence[Phase]) -> None:
    """Refuse phases that do not make up a task."""
    if not phases or abs(sum(phase.share for phase in phases) - 1) > 1e-9:
        raise UsageError(f"phases take {[phase.share for phase in phases]} of a task's steps; the shares must sum to 1")


def check_base(
    method: Method, init: Init, parts: Sequence[Strategy], train: TrainSettings, quantize: str | None
) -> None:
    """Refuse a base whose weights change where they are spread over processes or held in 4 bits, and both at once."""
    changes = _changes_base(method, init, parts)
    spread, held = train.shard_base, quantize is not None
    settings = {
        "train.shard_base": (spread, "remove it"),
        f"model.quantize = {quantize!r}": (held, "take a base in whole weights, and remove model.quantize"),
    }
    for setting, remedy in ((setting, remedy) for setting, (on, remedy) in settings.items() if on):
        if changes:
            raise ConflictError(f"{setting} and {changes}; {remedy}")
    if spread and held:
        raise ConflictError("train.shard_base and model.quantize: 4-bit weights cannot be spread; remove one of them")


def fitting(method: Method, branch: Branch) -> Branch:
    """Return `branch`, made for `method`; refuse a start that would not leave the base's output alone."""
    init = branch.init
    tied = next((each.name for each in (init, method.init) if each.bound and init.name != method.init.name), "")
    if tied:
        what = f"the start {tied!r} is for factors that only the method it comes with has"
        raise ConflictError(f"adapter.init = {init.name!r} and method {method.slug!r}: {what}; leave adapter.init out")
    if init.residual and not (branch.linear and branch.additive):
        what = "takes what a block starts with out of the base, and what its blocks add depends on more than themselves"
        raise ConflictError(f"adapter.init = {init.name!r} {what} in method {method.slug!r}; choose another start")
    return branch


def _changes_base(method: Method, init: Init, parts: Sequence[Strategy]) -> str:
    """Say what changes the base's weights; empty: nothing does."""
    if method.live == "base":
        return f"method {method.slug!r}, whose base learns"
    if init.residual:
        return f"adapter.init = {init.name!r}, which takes what a block starts with out of the base"
    return next((f"dynamics {part.name!r}, which fold blocks into the base" for part in parts if part.folds), "")


def curriculum_of(method: Method, stream: Stream) -> tuple[Task, ...]:
    """Return the tasks as they are learnt: one by one, or all in one."""
    if method.order == "stream":
        return stream.tasks
    classes = tuple(sorted({c for task in stream.tasks for c in task.classes}))
    train, test = concat([t.train for t in stream.tasks]), concat([t.test for t in stream.tasks])
    return (Task("all tasks", 0, classes, train, None, test),)
