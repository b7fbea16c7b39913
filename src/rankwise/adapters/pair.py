"""The low-rank branch: y = base(x) + s * B gate(A x; x)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Generator, Tensor, nn

from rankwise.adapters.bank import Blocks, Spec
from rankwise.adapters.context import Context
from rankwise.adapters.inits import init_named, kaiming, zeros
from rankwise.adapters.sites import ALGEBRAS, Site
from rankwise.errors import UsageError


class Gate(Protocol):
    """How ranks are mixed: a pure function of the rank responses z = A x, with settings of its own."""

    linear: ClassVar[bool]
    """True: gate(z) is linear in z and does not depend on x, so the update can be merged into the weight."""

    def specs(self) -> Mapping[str, Spec]:
        """Tensors the gate needs besides A and B; each has the axis "rank" and starts at kaiming over "in"."""
        ...

    def __call__(self, z: Tensor, x: Tensor, blocks: Blocks, context: Context, site: Site, training: bool) -> Tensor:
        """Map responses z [..., R] to the coefficients [..., R] of the values, the columns of B."""
        ...


@dataclass(frozen=True)
class Identity:
    """Every rank acts as it is: plain LoRA."""

    linear: ClassVar[bool] = True

    def specs(self) -> Mapping[str, Spec]:
        """No tensors."""
        return {}

    def __call__(self, z: Tensor, x: Tensor, blocks: Blocks, context: Context, site: Site, training: bool) -> Tensor:
        """Return z."""
        return z


@dataclass(frozen=True)
class Pair:
    """A pair of factors with a gate between: delta(x) = s * B gate(A x; x).

    | symbol | shape | meaning |
    |---|---|---|
    | A | [R, in] | down factor; rows are keys |
    | B | [out, R] | up factor; columns are values |
    | s | scalar | scale |

    The operations come in PEFT's order (base, then the scaled update added), so a plain adapter gives its bits. A site
    may carry a factor of its own on top of s.
    """

    gate: Gate
    scale: float = 1.0
    """s, on every block alike, so that freezing a block never changes what it contributes."""
    dropout: float = 0.0
    """Probability with which an input feature is dropped on the way to A, in training only."""
    init: str = "kaiming"
    """Start of A; B starts at zero."""

    def __post_init__(self) -> None:
        """Refuse an init that does not exist, before a model is touched."""
        init_named(self.init)

    def specs(self) -> Mapping[str, Spec]:
        """Return the tensors a site needs."""
        return {"A": Spec(("rank", "in"), "down"), "B": Spec(("out", "rank"), "up"), **self.gate.specs()}

    def start(self, site: Site, rank: int, rng: Generator) -> dict[str, Tensor]:
        """Return the starting values of a new block of `rank` ranks at `site`."""
        down = init_named(self.init)(rank, site.n_in, rng)
        gate = {name: kaiming(rank, site.n_in, rng) for name in self.gate.specs()}
        return {"A": down, "B": zeros(site.n_out, rank, rng), **gate}

    def delta(
        self, x: Tensor, blocks: Blocks, context: Context, site: Site, module: nn.Module, training: bool
    ) -> Tensor:
        """Return s * B gate(A x; x), laid out as the output of `module` restricted to the site's rows."""
        algebra = ALGEBRAS[site.kind]
        x = self._prepare(x, blocks, training)
        z = [algebra.down(x, part["A"], module, site) for part in blocks.parts]
        w = self.gate(z[0] if len(z) == 1 else torch.cat(z, -1), x, blocks, context, site, training)
        y = [algebra.up(v, part["B"]) for v, part in zip(blocks.split(w), blocks.parts, strict=True)]
        return sum(y[1:], y[0]) * (self.scale * site.scale)

    def plain(self, blocks: Blocks, site: Site) -> tuple[Tensor, Tensor, float]:
        """Return (A, B, scale) of the plain LoRA that computes the same: a linear gate goes into A.

        Raises:
            UsageError: the gate depends on the input, so no matrix is equal to the update.

        """
        if not self.gate.linear:
            raise UsageError(
                f"{type(self.gate).__name__}: this gate depends on the input, so no matrix equals the update and it "
                "can neither be merged nor be written as a LoRA; keep it beside the base (rankwise.save)"
            )
        a = blocks["A"].detach()
        a = self.gate(a.T, a.T, blocks, Context(), site, False).detach().T
        return a, blocks["B"].detach(), self.scale * site.scale

    def dense(self, blocks: Blocks, site: Site) -> Tensor:
        """Return the update as one matrix [out, in] in float32 (float64 for float64 factors); see `plain`."""
        a, b, scale = self.plain(blocks, site)
        exact = torch.promote_types(a.dtype, torch.float32)
        return scale * (b.to(exact) @ a.to(exact))

    def record(self) -> dict[str, Any]:
        """Return the settings as JSON values; a method builds an equal branch from them."""
        gate = dict(vars(self.gate)) if not isinstance(self.gate, Identity) else {}
        return {"scale": self.scale, "dropout": self.dropout, "init": self.init, "gate": gate}

    def _prepare(self, x: Tensor, blocks: Blocks, training: bool) -> Tensor:
        if not x.is_floating_point():
            return x
        x = x.to(blocks.parts[0]["A"].dtype)
        return nn.functional.dropout(x, self.dropout, training) if self.dropout and training else x
