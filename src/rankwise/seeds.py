"""Every random draw is a function of counters: a seed and the names and numbers that say which draw it is."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def derive(seed: int, *keys: str | int) -> int:
    """Hash `seed` and `keys` into an integer in [0, 2**63): equal counters give equal draws, in any process.

    >>> derive(1, "init", 3) == derive(1, "init", 3) != derive(1, "init", 4)
    True
    """
    text = "\x1f".join(f"{type(key).__name__}:{key}" for key in (seed, *keys))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(seed: int, *keys: str | int) -> torch.Generator:
    """Return a CPU generator that starts where `derive(seed, *keys)` says."""
    import torch

    return torch.Generator().manual_seed(derive(seed, *keys))
