"""Atoms that answer for themselves: of many rank-1 atoms the k that respond most act on a token.

    z = A x,  s = z / |z|,  w = softmax over the k largest s / tau,  0 where s < cut,  d = c sum_i w_i z_i B_i

All R atoms are scored, R in operations a token (multiply and add count as one); k values are read instead of R, k out,
unless R is so small that one product with all of them is faster.
The derivative through the chosen atoms is sparse, too. What remains is that of |z|, which lies along A^T A x: of the z
that are kept, R in, or, where a frozen pool is wider than its input, of its Gram matrix A^T A, which is remembered,
in^2 whatever the number of atoms. The plain path takes 2 R (in + out). Nothing is approximated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from rankwise.adapters.bank import Blocks
from rankwise.adapters.fused import Fused, Rest

EPS = 1e-8
"""Added to the norm: a token with no response at all gets scores of zero, not NaN."""
FOLDS, SHORT = 4, 40
"""`largest` folds rows longer than SHORT into FOLDS."""
_grams: WeakIdKeyDictionary = WeakIdKeyDictionary()  # keys -> (their version, Gram matrix)


def gram(a: Tensor) -> Tensor:
    """Return A^T A [in, in] of frozen keys; it is remembered as long as they live and nothing writes to them."""
    held = _grams.get(a)
    if held is None or held[0] != a._version:
        held = _grams[a] = (a._version, a.T @ a)
    return held[1]


def top_atoms(blocks: Blocks, k: int, temperature: float, cut: float | None, scale: float) -> Fused | None:
    """Return the product for all atoms of `blocks`; None for precisions in which scores are not formed."""
    keys, values = ([part[name] for part in blocks.parts] for name in "AB")
    device, dtype = keys[0].device.type, keys[0].dtype
    if dtype not in (torch.float32, torch.float64) or torch.is_autocast_enabled(device):
        return None
    wide = tuple(not a.requires_grad and a._base is None and len(a) > a.shape[1] for a in keys)
    grams = [gram(a) for a, held in zip(keys, wide, strict=True) if held] if torch.is_grad_enabled() else []
    return TopAtoms(k, temperature, cut, scale, wide), (*keys, *values, *grams)


@dataclass(frozen=True)
class TopAtoms:
    """The update above for tensors A_0 .. A_n, B_0 .. B_n, and the Gram matrices of the wide parts."""

    k: int
    temperature: float
    cut: float | None
    """None: none is pruned."""
    scale: float
    wide: tuple[bool, ...]
    """Which parts have a Gram matrix, so that their z need not be kept."""

    def add(self, y: Tensor, x: Tensor, tensors: Sequence[Tensor], wanted: Sequence[bool]) -> tuple[Tensor | None, ...]:
        """Add d; keep of the responses the places and values of the largest, 1 / |z|, w, and z of the narrow parts."""
        keys, values, _ = self._parts(tensors)
        sizes = [len(a) for a in keys]
        z = x.new_empty(len(x), sum(sizes))
        pieces = z.split(sizes, 1)
        for a, piece in zip(keys, pieces, strict=True):
            torch.mm(x, a.T, out=piece)
        best, index = largest(z, min(self.k, sum(sizes)))
        unit = torch.linalg.vecdot(z, z).add_(EPS**2).rsqrt_()[:, None]
        w = (best * (unit / self.temperature)).softmax(-1)
        _mix(y, values, index, self._pruned(w, best, unit) * best * self.scale)
        narrow = [None if wide else piece for piece, wide in zip(pieces, self.wide, strict=True)]
        if any(self.wide):  # else they are all of z
            narrow = [piece if piece is None else piece.clone() for piece in narrow]
        return best, index, unit, w, *narrow

    def backward(
        self, g: Tensor, x: Tensor, tensors: Sequence[Tensor], kept: Sequence[Tensor | None], wanted: Sequence[bool]
    ) -> tuple[Rest, list[Tensor | None]]:
        """Return dz = sparse - (sum ds s) / |z| s, times A for x and times x for keys that learn."""
        keys, values, grams = self._parts(tensors)
        best, index, unit, w, *z = kept
        assert best is not None and index is not None and unit is not None and w is not None
        acts = self._pruned(w, best, unit) * self.scale
        c = acts * best
        sparse, along = self._derivative(_dots(g, values, index), w, c, acts, best, unit)
        starts = [sum(len(b) for b in keys[:i]) for i in range(len(keys))]
        placed = [_within(index, start, len(a)) for start, a in zip(starts, keys, strict=True)]
        dz = [None if v is None else _spread(sparse, *p, v * along) for v, p in zip(z, placed, strict=True)]
        n = len(keys)
        of_keys = [v.T @ x if want and v is not None else None for v, want in zip(dz, wanted[:n], strict=True)]
        of_values = [
            (_spread(c, *p, g.new_zeros(len(g), len(a))).T @ g).T if want else None
            for p, a, want in zip(placed, keys, wanted[n : 2 * n], strict=True)
        ]

        def rest(gx: Tensor) -> None:
            held = iter(grams)
            for a, v, (local, inside) in zip(keys, dz, placed, strict=True):
                if v is not None:
                    gx.addmm_(v, a)
                else:
                    gx.addcmul_(x @ next(held), along)
                    gx.add_(F.embedding_bag(local, a, mode="sum", per_sample_weights=sparse * inside))

        return rest, [*of_keys, *of_values, *(None for _ in grams)]

    def _parts(self, tensors: Sequence[Tensor]) -> tuple[Sequence[Tensor], Sequence[Tensor], Sequence[Tensor]]:
        n = len(self.wide)
        return tensors[:n], tensors[n : 2 * n], tensors[2 * n :]

    def _pruned(self, w: Tensor, best: Tensor, unit: Tensor) -> Tensor:
        return w if self.cut is None else w * (best * unit >= self.cut)

    def _derivative(
        self, of_c: Tensor, w: Tensor, c: Tensor, acts: Tensor, best: Tensor, unit: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return dz at the chosen atoms [T, k], and the factor of z in it at all of them [T, 1]."""
        of_w = of_c * c  # times w, which the derivative of the softmax has in it anyway
        of_s = (of_w - w * of_w.sum(-1, keepdim=True)) / self.temperature
        return of_c * acts + of_s * unit, -(of_s * best).sum(-1, keepdim=True) * unit**3


def largest(z: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k largest of each row of z [T, R] and their places [T, k], in no order.

    A long row is folded: the k largest lie in the k columns whose largest is largest, so only those are looked at.
    """
    width = -(-z.shape[1] // FOLDS)
    if z.shape[1] <= max(SHORT, FOLDS * k):
        best, index = z.topk(k, -1, sorted=False)
        return best, index
    if missing := FOLDS * width - z.shape[1]:
        z = F.pad(z, (0, missing), value=-torch.inf)
    _, columns = largest(z.view(-1, FOLDS, width).amax(1), k)
    steps = torch.arange(0, FOLDS * width, width, device=z.device)
    places = (columns[:, None] + steps[:, None]).flatten(1)
    best, chosen = z.gather(1, places).topk(k, -1, sorted=False)
    return best, places.gather(1, chosen)


def _mix(y: Tensor, values: Sequence[Tensor], index: Tensor, c: Tensor) -> None:
    """Add to y [T, out] the columns of the values that `index` [T, k] names, times c [T, k]; in place."""
    if _few(values, index):
        y.addmm_(c.new_zeros(len(c), _count(values)).scatter_(1, index, c), _rows(values))
    else:
        y.add_(F.embedding_bag(index, _rows(values), mode="sum", per_sample_weights=c))


def _dots(g: Tensor, values: Sequence[Tensor], index: Tensor) -> Tensor:
    """Return the products of g [T, out] with the columns of the values that `index` [T, k] names: [T, k]."""
    if _few(values, index):
        return (g @ _rows(values).T).gather(1, index)
    tokens, k = index.shape
    bags = torch.arange(tokens, device=g.device)
    of_weights = torch.ops.aten._embedding_bag_per_sample_weights_backward
    return of_weights(g, _rows(values), index.flatten(), bags * k, bags.repeat_interleave(k), 0).view(tokens, k)


def _few(values: Sequence[Tensor], index: Tensor) -> bool:
    """Say whether reading all values in one product is faster than gathering the chosen."""
    return _count(values) <= 3 * index.shape[1]


def _count(values: Sequence[Tensor]) -> int:
    return sum(b.shape[1] for b in values)


def _rows(values: Sequence[Tensor]) -> Tensor:
    """Return the columns of all B [out, r] as rows [R, out]."""
    return torch.cat([b.T for b in values]) if len(values) > 1 else values[0].T


def _within(index: Tensor, start: int, size: int) -> tuple[Tensor, Tensor]:
    """Return the places counted from `start`, and which lie in the `size` from there; the others count as place 0."""
    inside = (index >= start) & (index < start + size)
    return (index - start) * inside, inside


def _spread(values: Tensor, local: Tensor, inside: Tensor, onto: Tensor) -> Tensor:
    """Add `values` [T, k] that are inside to their places of `onto` [T, r], in place."""
    return onto.scatter_add_(1, local, values * inside)
