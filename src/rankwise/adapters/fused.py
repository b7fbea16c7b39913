"""One autograd node for base and update: what autograd would keep of a gated pair is recomputed or never made.

    y = base(x) + d(x),    dx = base's dx + what d adds, in place

A plain pair d(x) = s B A x keeps x alone, which the sites that read it share, and works A x out again: small tensors
that stay between large ones that go would hold the heap apart. The forward is in PEFT's order and so has its bits.
Two nodes stand around the base, which is only called:

    x --Enter--> base --> y --Leave--> y + d(x)

In the backward, Leave runs before the base's and Enter after it: Leave works out the gradients of the factors and
leaves word how d adds to x's gradient; Enter adds that to the base's, in place. A second derivative raises.
`using(model, fused=False)` takes the plain path, operation by operation, which is the reference.
"""

from __future__ import annotations

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

    def forward(self, x: Tensor, tensors: Sequence[Tensor]) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        """Return d, a fresh tensor, and what the backward wants kept besides x and `tensors`."""
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


@dataclass(frozen=True)
class Sum:
    """d = s * sum_i B_i A_i x for tensors A_0, B_0, A_1, B_1, ...: plain LoRA, part by part as the plain path adds."""

    scale: float

    def forward(self, x: Tensor, tensors: Sequence[Tensor]) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        """Return d; nothing is kept."""
        parts = [x @ a.T @ b.T for a, b in zip(tensors[::2], tensors[1::2], strict=True)]
        d = parts[0]
        for part in parts[1:]:
            d.add_(part)
        return (d if self.scale == 1 else d.mul_(self.scale)), ()

    def backward(
        self, g: Tensor, x: Tensor, tensors: Sequence[Tensor], kept: Sequence[Tensor | None], wanted: Sequence[bool]
    ) -> tuple[Rest, list[Tensor | None]]:
        """Return the same sums, transposed; (A x)^T g is the fast way round."""
        keys, up = tensors[::2], [g @ b for b in tensors[1::2]]
        if self.scale != 1:
            up = [v.mul_(self.scale) for v in up]
        found: list[Tensor | None] = []
        for i, (a, v) in enumerate(zip(keys, up, strict=True)):
            found.append(v.T @ x if wanted[2 * i] else None)
            found.append(((x @ a.T).T @ g).mul_(self.scale).T if wanted[2 * i + 1] else None)

        def rest(gx: Tensor) -> None:
            for a, v in zip(keys, up, strict=True):
                gx.addmm_(v, a)

        return rest, found


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
        d, kept = product.forward(_rows(x, tensors[0]), tensors)
        ctx.product, ctx.word, ctx.through, ctx.count = product, word, through, len(tensors)
        ctx.save_for_backward(x, *tensors, *kept)
        d = d.view(*x.shape[:-1], d.shape[-1])
        if not word.fresh or y._base is not None or d.dtype != y.dtype:
            return (y + d).to(y.dtype)
        ctx.mark_dirty(y)
        return y.add_(d)

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
