"""What is put at a site: a function of input, base output, tensors and context that owns and writes nothing."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from pydantic import ConfigDict
from torch import Generator, Tensor, nn

from rankwise.adapters.bank import Blocks, Spec
from rankwise.adapters.context import Context
from rankwise.adapters.fused import Fused, summed
from rankwise.adapters.inits import KAIMING, Init, Weight
from rankwise.adapters.sites import Site
from rankwise.errors import UsageError


@runtime_checkable
class Gate(Protocol):
    """How ranks are mixed: a pure function of the rank responses z = A x, with settings of its own."""

    linear: ClassVar[bool]
    """True: gate(z) is linear in z and does not depend on x, so the update can be merged into the weight."""

    def specs(self, site: Site) -> Mapping[str, Spec]:
        """Tensors the gate needs besides A and B at `site`."""
        ...

    def start(self, site: Site, rank: int, rng: Generator) -> dict[str, Tensor]:
        """Return the starting values of those tensors for a new block (without the axis "block")."""
        ...

    def __call__(self, z: Tensor, x: Tensor, blocks: Blocks, context: Context, site: Site, training: bool) -> Tensor:
        """Map responses z [..., R] to the coefficients [..., R] of the values, the columns of B."""
        ...


class Untensored:
    """A linear gate without tensors of its own."""

    linear: ClassVar[bool] = True

    def specs(self, site: Site) -> Mapping[str, Spec]:
        """No tensors."""
        return {}

    def start(self, site: Site, rank: int, rng: Generator) -> dict[str, Tensor]:
        """No tensors."""
        return {}


@dataclass(frozen=True)
class Identity(Untensored):
    """Every rank acts as it is: plain LoRA."""

    def __call__(self, z: Tensor, x: Tensor, blocks: Blocks, context: Context, site: Site, training: bool) -> Tensor:
        """Return z."""
        return z

    def fused(self, blocks: Blocks, scale: float, training: bool) -> Fused | None:
        """Return the sum over the parts."""
        return summed([part["A"] for part in blocks.parts], [part["B"] for part in blocks.parts], scale, training)


@dataclass(frozen=True)
class Branch(ABC):
    """One object for all sites of a model; its fields are settings, its tensors come as `blocks` from a bank.

    The site adds `delta` to the base's output. A subclass is a frozen dataclass; what it has besides the four fields
    here is set under [adapter.form].
    """

    gate: Gate = Identity()
    scale: float = 1.0
    """Factor on every block alike, so that freezing a block never changes what it contributes."""
    dropout: float = 0.0
    """Probability with which an input feature is dropped on the way in, in training only."""
    init: Init = KAIMING
    """Start of the factors, for branches that have any."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(arbitrary_types_allowed=True)
    thin: ClassVar[bool] = False
    """True if `plain` gives two factors of few ranks."""
    additive: ClassVar[bool] = True
    """False: what a block adds depends on the other blocks, so that only all of them together can be folded."""
    whole_batch: ClassVar[bool] = False
    """True if it puts losses into the context that are no sums over examples: no micro-batches, no second process."""

    @abstractmethod
    def specs(self, site: Site) -> Mapping[str, Spec]:
        """Return the tensors `site` needs."""

    @abstractmethod
    def start(self, site: Site, rank: int, rng: Generator, weight: Weight) -> dict[str, Tensor]:
        """Return the starting values of a new block of `rank` ranks at `site` (without the axis "block")."""

    @abstractmethod
    def delta(
        self,
        x: Tensor,
        y: Tensor,
        blocks: Blocks,
        context: Context,
        site: Site,
        module: nn.Module,
        training: bool,
    ) -> Tensor:
        """Return what is added to the base's output.

        Args:
            x: input of the base module (of the module `site.reads` names, where it does).
            y: the base module's output, cut to the site's rows.
            blocks: the tensors of the blocks that act; there is at least one.
            context: what the forward may know besides.
            site: where this is.
            module: the base module.
            training: whether the model is in training mode.

        """

    def fused(self, blocks: Blocks, site: Site, training: bool) -> Fused | None:
        """Return the update as a product with its derivative written out, and its tensors; None: `delta` alone."""
        return None

    def shared(self, widest: tuple[int, int], rank: int, rng: Generator) -> Mapping[str, Tensor]:
        """Return the tensors that all sites have in common, for the largest (in, out) among them; made once."""
        return {}

    @property
    def linear(self) -> bool:
        """True if the update is a matrix: the same for every input, so that it can be merged."""
        return self.gate.linear

    def plain(self, blocks: Blocks, site: Site) -> tuple[Tensor, Tensor, float]:
        """Return (A [r, in], B [out, r], scale) of the plain LoRA that computes the same.

        Raises:
            UsageError: there is none.

        """
        self.refuse_unless_linear()
        raise UsageError(f"{type(self).__name__}: this update is no product of two thin factors; rankwise.merge it")

    def dense(self, blocks: Blocks, site: Site, weight: Weight) -> Tensor:
        """Return the update as one matrix [out, in] in float32 (float64 for float64 factors).

        Raises:
            UsageError: the update depends on the input, so no matrix is equal to it.

        """
        a, b, scale = self.plain(blocks, site)
        exact = torch.promote_types(a.dtype, torch.float32)
        return scale * (b.to(exact) @ a.to(exact))

    def refuse_unless_linear(self) -> None:
        """Raise UsageError if the update depends on the input."""
        if not self.linear:
            what = self if isinstance(self.gate, Identity) else self.gate
            raise UsageError(
                f"{type(what).__name__}: this gate depends on the input, so no matrix equals the update and it "
                "can neither be merged nor be written as a LoRA; keep it beside the base (rankwise.save)"
            )

    def refuse_init(self) -> None:
        """Raise UsageError if a start of the factors was asked for: for branches that start in a way of their own."""
        if self.init is not KAIMING:
            raise UsageError(
                f"adapter.init = {self.init.name!r}: {type(self).__name__} starts in a way of its own; leave it out"
            )

    def record(self) -> dict[str, Any]:
        """Return the settings as JSON values, as [adapter] takes them; a method builds an equal branch from them."""
        gate = {} if isinstance(self.gate, Identity) else dict(vars(self.gate))
        form = {name: getattr(self, name) for name in own_settings(type(self))}
        return {"scale": self.scale, "dropout": self.dropout, "init": self.init.name, "gate": gate, "form": form}

    def dropped(self, x: Tensor, training: bool) -> Tensor:
        """Return x with features dropped, in training."""
        return nn.functional.dropout(x, self.dropout, training) if self.dropout and training else x


def own_settings(form: type[Branch]) -> tuple[str, ...]:
    """Return the names of the settings that a kind of branch has besides those that all have."""
    common = {field.name for field in fields(Branch)}
    return tuple(field.name for field in fields(form) if field.name not in common)
