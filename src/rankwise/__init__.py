"""rankwise: continual low-rank adaptation of pretrained models.

Learn a stream of tasks without forgetting, with sums of gated rank-1 updates on any torch or Hugging Face model.
Names are loaded when they are first used, so that importing the package costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rankwise.version import __version__

if TYPE_CHECKING:
    from rankwise.api import Run, adapt, export, load, merge, methods, resume, run, save
    from rankwise.errors import ConflictError, DataError, NonFiniteError, RankwiseError, StorageError, UsageError
    from rankwise.learning.foreign import learning
    from rankwise.learning.trainer import LearningCallback
    from rankwise.reporting.compare import compare
    from rankwise.reporting.page import report
    from rankwise.saved import evaluate, log, path, shelf, undo

_IN_API = ("Run", "adapt", "export", "load", "merge", "methods", "resume", "run", "save")
_IN_SAVED = ("evaluate", "log", "path", "shelf", "undo")
_IN_ERRORS = ("ConflictError", "DataError", "NonFiniteError", "RankwiseError", "StorageError", "UsageError")

__all__ = [
    "ConflictError",
    "DataError",
    "LearningCallback",
    "NonFiniteError",
    "RankwiseError",
    "Run",
    "StorageError",
    "UsageError",
    "__version__",
    "adapt",
    "compare",
    "evaluate",
    "export",
    "learning",
    "load",
    "log",
    "merge",
    "methods",
    "path",
    "report",
    "resume",
    "run",
    "save",
    "shelf",
    "undo",
]


def __getattr__(name: str) -> Any:
    """Load a public name on first use."""
    if name == "learning":
        import rankwise.learning as module

        return module
    if name == "LearningCallback":
        from rankwise.learning.trainer import LearningCallback

        return LearningCallback
    if name == "report":
        from rankwise.reporting.page import report

        return report
    if name == "compare":
        from rankwise.reporting.compare import compare

        return compare
    if name in _IN_ERRORS:
        from rankwise import errors

        return getattr(errors, name)
    if name in _IN_SAVED:
        from rankwise import saved

        return getattr(saved, name)
    if name in _IN_API:
        from rankwise import api

        return getattr(api, name)
    raise AttributeError(f"module 'rankwise' has no attribute {name!r}")


def __dir__() -> list[str]:
    """List the public names, loaded or not, for completion."""
    return __all__
