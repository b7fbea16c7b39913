"""Tensors laid over a base's own: heads, embeddings and biases that a checkpoint trained beside its factors.

They are part of the adapter, not of the base: they are saved with it, and taking the adapter off puts back what stood
there. What is not in the model (the base's own tensors while the adapter is on) waits in one dictionary. Tensors of the
base that learn beside the factors in a loop of one's own are known by `Seen`.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from rankwise.errors import UsageError, nearest


def check_fits(base: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Raise UsageError where `base` has no tensor of a name, or one of another shape."""
    own = base.state_dict()
    for name, tensor in tensors.items():
        if name not in own:
            raise UsageError(f"{name!r} is no tensor of this model; {nearest(name, own)}")
        if own[name].shape != tensor.shape:
            here, there = list(own[name].shape), list(tensor.shape)
            raise UsageError(f"{name!r} is {there} in the file and {here} in this model; resize the model first")


def exchange(base: nn.Module, laid: dict[str, Tensor]) -> None:
    """Put each tensor of `laid` in the place of the bare base's of that name, and keep in `laid` what stood there.

    Doing it twice changes nothing. A tensor under two names is one parameter at both; one that stands elsewhere too
    (tied weights) stays there. Tensors follow the device and dtype of what they replace, and do not learn.
    """
    made: dict[int, Tensor] = {}
    for name, tensor in laid.items():
        path, _, leaf = name.rpartition(".")
        owner = base.get_submodule(path)
        learns = leaf in dict(owner.named_parameters(recurse=False, remove_duplicate=False))
        before = owner.get_parameter(leaf) if learns else owner.get_buffer(leaf)
        after = made.setdefault(id(tensor), _like(tensor, before))
        setattr(owner, leaf, after)
        laid[name] = before


def same_tensor(base: nn.Module, name: str) -> list[str]:
    """Return all names under which `base` has the tensor called `name`: more than one where weights are tied."""
    own = dict(base.named_parameters(remove_duplicate=False))
    return [other for other, tensor in own.items() if tensor is own.get(name)] or [name]


def _like(tensor: Tensor, before: Tensor) -> Tensor:
    """Return `tensor` as what `before` is: a parameter or a buffer, there and of that type."""
    moved = tensor.to(before)
    if not isinstance(before, nn.Parameter):
        return moved
    same = moved is tensor and isinstance(tensor, nn.Parameter)
    return tensor if same else nn.Parameter(moved.detach(), requires_grad=False)


def _counted(tensor: Tensor) -> tuple[weakref.ref[Tensor], int]:
    return weakref.ref(tensor), tensor._version


class Seen:
    """The tensors of a base as they were when the adapter came: enough to tell which have learnt since, unhashed.

    A parameter is known by torch's count of writes into it, a buffer that can learn (running statistics) by a copy, as
    torch does not count all writes into those. Fused optimisers do not count theirs either, so a parameter that learns
    now has learnt; one that they changed and that was frozen again is found by the fingerprint, when it is loaded.
    """

    def __init__(self, base: nn.Module) -> None:
        """Look at `base` before anything of it is changed."""
        own = dict(base.named_parameters(remove_duplicate=False))
        self.learning = {name for name, parameter in own.items() if parameter.requires_grad}
        self._writes = {name: _counted(p) for name, p in own.items() if not p.is_inference()}
        self._written: set[str] = set()
        buffers = dict(base.named_buffers(remove_duplicate=False))
        self._values = {name: b.detach().clone() for name, b in buffers.items() if b.is_floating_point() or not b.ndim}

    def moved(self, base: nn.Module) -> dict[str, Tensor]:
        """Return by name the tensors of the bare `base` that learn, or have been written to; what it saves of itself.

        Tensors that others took the place of (on another device, in shards) count as what they were.
        """
        learning = {name for name, p in base.named_parameters(remove_duplicate=False) if p.requires_grad}
        buffers = dict(base.named_buffers(remove_duplicate=False))
        values = {name: before for name, before in self._values.items() if name in buffers}
        changed = {name for name, before in values.items() if not torch.equal(before.to(buffers[name]), buffers[name])}
        names = learning | changed | self._now()
        return {name: tensor for name, tensor in base.state_dict().items() if name in names} if names else {}

    @contextmanager
    def edited(self, tensor: Tensor) -> Iterator[None]:
        """Let writes into `tensor` until the block ends be an edit, which the ledger holds: they are nothing learnt."""
        same = [name for name, (ref, count) in self._writes.items() if ref() is tensor and count == tensor._version]
        yield
        self._writes.update({name: _counted(tensor) for name in same})

    def _now(self) -> set[str]:
        refs = ((name, ref(), count) for name, (ref, count) in self._writes.items())
        return self._written | {name for name, p, count in refs if p is not None and p._version != count}

    def __getstate__(self) -> dict[str, Any]:
        """Give a copy what is known now: its parameters are others, with counts of their own."""
        return {**vars(self), "_writes": {}, "_written": self._now()}
