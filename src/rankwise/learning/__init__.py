"""The loop: learner, step, run, evaluation, metrics, ledger; and, called as a function, strategies on your own loop.

`rankwise.learning` is both this package and the verb `with rankwise.learning(model, "ewc", optimizer=opt) as hooks`, so
the module itself can be called.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    import torch
    from torch import nn

    from rankwise.learning.foreign import Hooks


class _Callable(ModuleType):
    """A module that is also the verb of the same name."""

    def __call__(
        self, model: nn.Module, *strategies: str, optimizer: torch.optim.Optimizer, **settings: Any
    ) -> AbstractContextManager[Hooks]:
        """Hook strategies into a training loop of your own; see `rankwise.learning.foreign.learning`."""
        from rankwise.learning.foreign import learning

        return learning(model, *strategies, optimizer=optimizer, **settings)


sys.modules[__name__].__class__ = _Callable
