"""The singular value decomposition of a weight, equal on every call, and kept on the disk where that is asked for."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rankwise.errors import StorageError, UsageError
from rankwise.files import write_file
from rankwise.tensors import load_tensors, save_tensors

TOLERANCE = 1e-5
"""Largest relative error of U diag(S) Vh, float32."""


@dataclass(frozen=True)
class Spectrum:
    """W = U diag(S) Vh with R = min(out, in) terms, the largest first."""

    u: Tensor
    """[out, R], orthonormal columns; the entry of largest magnitude in each is positive."""
    s: Tensor
    """[R], not negative, descending."""
    vh: Tensor
    """[R, in], orthonormal rows."""


def spectrum(weight: Tensor, cache: str = "") -> Spectrum:
    """Return the thin decomposition of `weight` [out, in], computed and returned in float32.

    Args:
        weight: the matrix.
        cache: a folder where decompositions lie, by a hash of the weight; "": nothing is kept. How many terms are used
            makes no difference to it.

    Raises:
        UsageError: the weight is not finite.
        StorageError: the file in `cache` is damaged.

    """
    weight = weight.detach().float().cpu().contiguous()
    if not cache:
        return _computed(weight)
    path = Path(cache) / f"{_digest(weight)}.safetensors"
    if path.exists():
        return _read(path, weight)
    found = _computed(weight)
    write_file(path, save_tensors({name: tensor.contiguous() for name, tensor in vars(found).items()}))
    return found


def truncated(weight: Tensor, rank: int, where: str) -> Spectrum:
    """Return the first `rank` terms; `where` names the weight in the error if it has fewer."""
    if rank > min(weight.shape):
        raise UsageError(f"{where!r}: rank {rank} of a weight with {min(weight.shape)} singular values; lower the rank")
    whole = spectrum(weight)
    return Spectrum(whole.u[:, :rank], whole.s[:rank], whole.vh[:rank])


def _computed(weight: Tensor) -> Spectrum:
    if not bool(weight.isfinite().all()):
        raise UsageError("a weight that is not finite has no singular values; load another base")
    u, s, vh = torch.linalg.svd(weight, full_matrices=False)
    sign = torch.sign(u.gather(0, u.abs().argmax(0, keepdim=True)))
    return Spectrum(u * sign, s, vh * sign.T)


def _read(path: Path, weight: Tensor) -> Spectrum:
    tensors, (rows, columns) = load_tensors(path), weight.shape
    shapes = {"u": (rows, min(rows, columns)), "s": (min(rows, columns),), "vh": (min(rows, columns), columns)}
    if {name: tuple(tensor.shape) for name, tensor in tensors.items()} != shapes:
        raise StorageError(f"{path}: holds no decomposition of a weight [{rows}, {columns}]; delete it")
    found = Spectrum(**tensors)
    error = (found.u * found.s @ found.vh - weight).norm()
    if error > TOLERANCE * weight.norm():
        raise StorageError(f"{path}: this decomposition gives another weight (error {float(error):.1e}); delete it")
    return found


def _digest(weight: Tensor) -> str:
    digest = hashlib.sha256("x".join(map(str, weight.shape)).encode())
    digest.update(weight.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
