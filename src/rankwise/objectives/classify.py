"""Classification: which classes a step's loss may see, with which head, and how a test example is answered."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rankwise.config import ClassifySettings
from rankwise.errors import DataError
from rankwise.objectives.heads import ClassMeans, Head, class_means


class Classify(nn.Module):
    """The classification objective; callable on plain tensors, it knows neither model nor trainer."""

    metric = "accuracy"

    def __init__(self, settings: ClassifySettings, dim: int, seed: int, names: Tensor | None = None) -> None:
        """Make the objective for features [N, dim].

        Args:
            settings: the choices above.
            dim: width of the features.
            seed: of the random rows.
            names: [classes, dim] one row for each class of the stream, needed by head = "names".

        Raises:
            DataError: head = "names" without name rows.

        """
        super().__init__()
        if settings.head == "names" and names is None:
            raise DataError('objective.head = "names" needs an embedding of the class names; use head = "cosine"')
        self.settings = settings
        self.head = Head(dim, "linear" if settings.head == "linear" else "cosine", settings.scale, seed)
        self.means = ClassMeans(dim)
        if names is not None:  # every class of the stream has a name, so every class has a row before it is learnt
            self.head.widen(range(len(names)), names)
            self.head.learn([])

    @property
    def wants_features(self) -> bool:
        """True if `begin_task` needs the features of the task's training data."""
        return self.settings.head == "means" or (self.settings.head == "cosine" and self.settings.imprint)

    def begin_task(self, classes: Sequence[int], learn: Sequence[int], features: Tensor | None, labels: Tensor) -> None:
        """Open rows for the classes of a task.

        Args:
            classes: the task's class ids.
            learn: ids whose rows may move in this task.
            features: [N, d] of its training data under the model as it is now, where `wants_features`.
            labels: [N] their class ids.

        """
        rows = self._rows(classes, features, labels)
        self.head.widen(classes, rows)
        self.head.learn([] if self.settings.head in ("names", "means") else learn)

    def losses(self, features: Tensor, labels: Tensor, classes: Sequence[int]) -> Tensor:
        """Return the cross-entropy of each example among `classes`: features [N, d], labels [N] -> [N]."""
        order = torch.tensor(list(classes), device=labels.device)
        hit = labels[:, None] == order
        if not bool(hit.any(1).all()):
            missing = sorted(set(labels[~hit.any(1)].tolist()))
            raise DataError(f"labels {missing} are not among the classes {list(classes)} this loss ranks")
        return F.cross_entropy(self.head.logits(features, classes).float(), hit.float().argmax(1), reduction="none")

    def end_task(self, classes: Sequence[int], domain: int, features: Tensor, labels: Tensor) -> None:
        """Take the class means of a finished task: features [N, d], labels [N] under the model as it is now."""
        self.means.put(classes, domain, class_means(features, labels, classes))

    def known(self) -> frozenset[int]:
        """Class ids that can be answered now."""
        return frozenset(self.means.classes if self.settings.predict == "means" else self.head.classes)

    def answer(self, features: Tensor, classes: Sequence[int]) -> Tensor:
        """Return the class id chosen for each of features [N, d] among `classes`: [N]."""
        answers = self.means if self.settings.predict == "means" else self.head
        order = torch.tensor(list(classes), device=features.device)
        return order[answers.logits(features, classes).argmax(1)]

    def _rows(self, classes: Sequence[int], features: Tensor | None, labels: Tensor) -> Tensor | None:
        if not self.wants_features:
            return None
        assert features is not None
        return class_means(features, labels, classes)
