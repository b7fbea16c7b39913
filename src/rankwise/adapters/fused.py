"""One autograd node for base and update: what autograd would keep of a gated pair, and its temporaries, are not made.

    y = base(x) + d(x),    dx = base's dx + what d adds, both in place

A plain pair d(x) = s B A x keeps x, which the sites that read it share, and z = A x; s B z is added to y by the product
itself. Two nodes stand around the base, which is only called:

    x --Enter--> base --> y --Leave--> y + d(x)

In the backward, Leave runs before the base's and Enter after it: Leave works out the gradients of the factors and
leaves word how d adds to x's gradient; Enter adds that to the base's, in place. A second derivative raises.
`using(model, fused=False)` takes the plain path, operation by operation, which is the reference.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from rankwise.adapters.bank import Blocks

Rest = Callable[[Tensor], None]
"""Adds, in place, what an update contributes to the gradient of its input, rows [T, in]."""


class Product(Protocol):
    """An update of rows with its derivative written out: x [T, in] -> d [T, out]; settings only, no tensors."""

    def add(self, y: Tensor, x: Tensor, tensors: Sequence[Tensor], wanted: Sequence[bool]) -> tuple[Tensor | None, ...]:
        """Add d to y [T, out] in place; return what the backward needs besides x and `tensors`.

        `wanted` says of each of `tensors` whether it may be asked for its gradient.
        """
        ...

    def backward(
        self, g: Tensor, x: Tensor, tensors: Sequence[Tensor], kept: Sequence[Tensor | None], wanted: Sequence[bool]
    ) -> tuple[Rest, list[Tensor | None]]:
        """Return what g [T, out] brings to x, and the gradients of those of `tensors` that are wanted."""
        ...


Fused = tuple[Product, tuple[Tensor, ...]]
"""A product and its tensors, for one forward."""


@runtime_checkable
class FusedGate(Protocol):
    """A gate that knows a product for s * B gate(A x; x)."""

    def fused(self, blocks: Blocks, scale: float, training: bool) -> Fused | None:
        """Return the product and its tensors; None where the settings ask for the plain path."""
        ...


def summed(keys: Sequence[Tensor], values: Sequence[Tensor], scale: float, training: bool) -> Fused | None:
    """Return the product s * sum_i B_i A_i x of A_i [r, in] and B_i [out, r].

    None where B alone learns, for the plain path keeps A x then and not x.
    """
    if any(b.requires_grad for b in values) and not any(a.requires_grad for a in keys):
        return None
    return Sum(scale, training and math.frexp(scale)[0] == 0.5), (*keys, *values)


@dataclass(frozen=True)
class Sum:
    """d = s * sum_i B_i A_i x for tensors A_0 .. A_n, B_0 .. B_n: plain LoRA."""

    scale: float
    at_once: bool
    """Whether the products of float32 and float64 add to y themselves. A scale that is a power of two rounds nothing,
    so few ranks have PEFT's bits this way, too; the other way, in PEFT's order, any number has on any machine."""

    def add(self, y: Tensor, x: Tensor, tensors: Sequence[Tensor], wanted: Sequence[bool]) -> tuple[Tensor | None, ...]:
        """Add each s B (A x); keep z = A x where B learns."""
        n = len(tensors) // 2
        z = [x @ a.T for a in tensors[:n]]
        if self.at_once and y.dtype in (torch.float32, torch.float64):
            for v, b in zip(z, tensors[n:], strict=True):
                y.addmm_(v, b.T, alpha=self.scale)
        else:
            d, *others = (v @ b.T for v, b in zip(z, tensors[n:], strict=True))
            for other in others:
                d.add_(other)
            y.add_(d.mul_(self.scale))
        return tuple(v if learns else None for v, learns in zip(z, wanted[n:], strict=True))

    def backward(
        self, g: Tensor, x: Tensor, tensors: Sequence[Tensor], kept: Sequence[Tensor | None], wanted: Sequence[bool]
    ) -> tuple[Rest, list[Tensor | None]]:
        """Return the same sums, transposed; z^T g is the fast way round (g^T z takes up to twice as long)."""
        n = len(tensors) // 2
        keys, up = tensors[:n], [(g @ b).mul_(self.scale) for b in tensors[n:]]
        of_keys = [v.T @ x if want else None for v, want in zip(up, wanted[:n], strict=True)]
        of_values = [
            (z.T @ g).mul_(self.scale).T if want and z is not None else None
            for z, want in zip(kept, wanted[n:], strict=True)
        ]

        def rest(gx: Tensor) -> None:
            for a, v in zip(keys, up, strict=True):
                gx.addmm_(v, a)

        return rest, [*of_keys, *of_values]


@dataclass
class Word:
    """What the two nodes of a forward know of each other."""

    fresh: bool
    """Whether nobody else sees what the base hands over, its output and the gradient of its input: it is added to."""
    rest: Rest | None = None
    """What Leave tells Enter in a backward."""


def added(
    base: nn.Module, x: Tensor, product: Product, tensors: Sequence[Tensor], drop: Callable[[Tensor], Tensor] | None
) -> Tensor:
    """Return base(x) + product(x), or base(x) + product(drop(x)), in the dtype of base(x)."""
    word = Word(_fresh(base))
    through = drop is None and x.requires_grad and torch.is_grad_enabled()
    if through:
        x = _Enter.apply(x, word)  # pyright: ignore[reportAssignmentType]
    y = base(x)
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        tensors = [t.to(dtype) for t in tensors]
    x = x if drop is None else drop(x)
    return _Leave.apply(product, word, through, y, x, *tensors)  # pyright: ignore[reportReturnType]


def _fresh(base: nn.Module) -> bool:
    """Say whether nobody but the caller sees the base's output and what its backward hands over."""
    hooks = (base._forward_hooks, base._forward_pre_hooks, base._backward_hooks, base._backward_pre_hooks)
    return type(base) is nn.Linear and not any(hooks)


class _Enter(torch.autograd.Function):
    """x as it is; in the backward, Leave's word added to the gradient that the base hands over."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, word: Word) -> Tensor:
        ctx.word = word
        return x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *gradients: Tensor
    ) -> tuple[Tensor | None, ...]:
        (gx,) = gradients
        rest, ctx.word.rest = ctx.word.rest, None
        if rest is not None:
            gx = gx.contiguous() if ctx.word.fresh else gx.clone(memory_format=torch.contiguous_format)
            rest(gx.view(-1, gx.shape[-1]))
        return gx, None


class _Leave(torch.autograd.Function):
    """y + d(x), in the dtype of y."""

    @staticmethod
    def forward(
        ctx: Any, product: Product, word: Word, through: bool, y: Tensor, x: Tensor, *tensors: Tensor
    ) -> Tensor:
        rows, like, wanted = _rows(x, tensors[0]), tensors[0].dtype, ctx.needs_input_grad[5:]
        into = word.fresh and y._base is None and y.is_contiguous() and y.dtype == like
        d = y.view(-1, y.shape[-1]) if into else rows.new_zeros(len(rows), y.shape[-1])
        kept = product.add(d, rows, tensors, wanted)
        ctx.product, ctx.word, ctx.through, ctx.count = product, word, through, len(tensors)
        ctx.save_for_backward(x, *tensors, *kept)
        if not into:
            return (y + d.view(y.shape)).to(y.dtype)
        ctx.mark_dirty(y)
        return y

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *gradients: Tensor
    ) -> tuple[Tensor | None, ...]:
        (g,), (x, *saved) = gradients, ctx.saved_tensors
        tensors, kept = saved[: ctx.count], saved[ctx.count :]
        _, _, _, _, of_x, *wanted = ctx.needs_input_grad
        rows = _rows(x, tensors[0])
        rest, found = ctx.product.backward(_rows(g, tensors[0]), rows, tensors, kept, wanted)
        gx = None
        if of_x and ctx.through:
            ctx.word.rest = _like(rest, rows) if rows.dtype != x.dtype else rest
        elif of_x:
            rest(gx := torch.zeros_like(rows))
            gx = gx.view(x.shape).to(x.dtype)
        return None, None, None, g, gx, *found


def _rows(x: Tensor, like: Tensor) -> Tensor:
    """Lay x [..., in] out as rows [T, in] in the dtype of the factors."""
    return x.reshape(-1, x.shape[-1]).to(like.dtype)


def _like(rest: Rest, rows: Tensor) -> Rest:
    """Let `rest`, which adds in the dtype of `rows`, add to a gradient of another dtype."""

    def converted(gx: Tensor) -> None:
        rest(own := torch.zeros_like(rows))
        gx.add_(own)

    return converted
