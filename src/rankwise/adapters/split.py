"""A pair that starts as the weak singular directions of the weight, which are taken out of the base."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from torch import Generator, Tensor, nn

from rankwise.adapters.bank import BLOCK, Blocks, Spec
from rankwise.adapters.context import Context
from rankwise.adapters.gates import WEIGHT
from rankwise.adapters.inits import Weight
from rankwise.adapters.model import banks_of
from rankwise.adapters.pair import Pair
from rankwise.adapters.sites import Site
from rankwise.adapters.spectrum import spectrum
from rankwise.errors import UsageError

STRONG: Mapping[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "B": lambda t, u, v: u @ (u.T @ t),
    "A": lambda t, u, v: (t @ v.T) @ v,
    "D": lambda t, u, v: u @ (u.T @ t @ v.T) @ v,
}
"""Live tensor of a `Split` -> (values, U_h, V_h) -> the part of the values that lies along the frozen directions."""


@dataclass(frozen=True)
class Split(Pair):
    """The weak part of a weight as a block: A = V_l, B = U_l, w = S_l; beside it U_h and V_h, fixed.

    | symbol | shape | meaning |
    |---|---|---|
    | U_h, V_h | [out, k], [k, in] | frozen singular directions |
    | D | [out, in] | mode "core": what is added to W |
    """

    mode: Literal["factored", "core"] = "factored"
    """core, for comparison: a dense D learns and loses only U_h^T D V_h^T, the paper's formula G - U_h (U_h^T G V_h^T)
    V_h; both cross blocks leak. U_l, S_l and V_l stay as they are then."""
    cache: str = ""
    """Folder for decompositions, found again by a hash of the weight; "": none."""

    def specs(self, site: Site) -> Mapping[str, Spec]:
        """Return the low part's factors, which learn in one mode only, and what must stay."""
        learns = self.mode == "factored"
        low = {name: replace(spec, learns=learns) for name, spec in super().specs(site).items()}
        high = {"U_h": Spec((BLOCK, "out", "kept"), "basis", False), "V_h": Spec((BLOCK, "kept", "in"), "basis", False)}
        return {**low, **high, **({} if learns else {"D": Spec((BLOCK, "out", "in"), "update")})}

    def start(self, site: Site, rank: int, rng: Generator, weight: Weight) -> dict[str, Tensor]:
        """Decompose the weight; the `rank` weakest directions become the block."""
        whole = spectrum(weight(), self.cache)
        kept = len(whole.s) - rank
        if kept < 0:
            raise UsageError(f"{site.name!r}: {rank} ranks to learn, its weight has {len(whole.s)}; lower the rank")
        low = {"A": whole.vh[kept:], "B": whole.u[:, kept:], WEIGHT: whole.s[kept:] / (self.scale * site.scale)}
        dense = {} if self.mode == "factored" else {"D": torch.zeros(site.n_out, site.n_in)}
        return {**low, "U_h": whole.u[:, :kept], "V_h": whole.vh[:kept], **dense}

    def delta(
        self, x: Tensor, y: Tensor, blocks: Blocks, context: Context, site: Site, module: nn.Module, training: bool
    ) -> Tensor:
        """Return (U_l S_l V_l + D) x."""
        low = super().delta(x, y, blocks, context, site, module, training)
        return low if self.mode == "factored" else low + nn.functional.linear(x, blocks["D"].sum(0))

    def plain(self, blocks: Blocks, site: Site) -> tuple[Tensor, Tensor, float]:
        """Return it as two factors; D counts as one beside the unit matrix."""
        a, b, scale = super().plain(blocks, site)
        if self.mode == "factored":
            return a, b, scale
        dense = blocks["D"].detach().sum(0)
        return torch.cat([a, torch.eye(site.n_in).to(a)]), torch.cat([b, dense / scale], 1), scale


def weakest(model: nn.Module, frozen: Mapping[str, float]) -> dict[str, int]:
    """Return how many directions, one at the least, are left of each site where a share of min(in, out) is frozen."""
    sizes = {name: min(site.n_in, site.n_out) for name, (site, _) in banks_of(model).items()}
    return {name: size - min(int(frozen[name] * size), size - 1) for name, size in sizes.items()}


def strong_parts(model: nn.Module) -> Iterator[tuple[nn.Parameter, Callable[[Tensor], None]]]:
    """Yield each live tensor, and what takes out of values of its shape what lies along the frozen directions."""
    for _, bank in banks_of(model).values():
        fixed = bank.fixed.tensors()
        for name, parameter in bank.live.items():
            if name in STRONG:
                yield parameter, partial(_take_out, STRONG[name], fixed["U_h"][0], fixed["V_h"][0])


def _take_out(part: Callable[[Tensor, Tensor, Tensor], Tensor], u: Tensor, v: Tensor, values: Tensor) -> None:
    values.sub_(part(values, u, v))
