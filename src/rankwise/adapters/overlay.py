"""Tensors laid over a base's own: heads, embeddings and biases that a checkpoint trained beside its factors.

They are part of the adapter, not of the base: they are saved with it, and taking the adapter off puts back what stood
there. What is not in the model (the base's own tensors while the adapter is on) waits in one dictionary.
"""

from __future__ import annotations

from collections.abc import Mapping

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
