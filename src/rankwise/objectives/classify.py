"""Classification: which classes a step's loss may see, with which head, and how a test example is answered."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rankwise.adapters import Bank, Sink
from rankwise.config import ClassifySettings
from rankwise.errors import DataError, UsageError
from rankwise.files import Content
from rankwise.models import Backbone
from rankwise.objectives.base import Learning, Objective, Outputs
from rankwise.objectives.heads import ClassMeans, Head, class_means
from rankwise.objectives.names import name_rows
from rankwise.streams import Batch, Split, Stream, Task
from rankwise.tensors import tensor_writer


class Classify(Objective):
    """The classification objective; `open`, `cross_entropy`, `close` and `answer` take plain tensors."""

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
        self.settings, self.lr = settings, settings.lr
        self.head = Head(dim, "linear" if settings.head == "linear" else "cosine", settings.scale, seed)
        self.means = ClassMeans(dim)
        if names is not None:  # every class of the stream has a name, so every class has a row before it is learnt
            self.head.widen(range(len(names)), names)
            self.head.learn([])

    @classmethod
    def made(cls, settings: ClassifySettings, backbone: Backbone, stream: Stream, seed: int) -> Classify:
        """Make the objective of a run; raise UsageError where the stream asks for words."""
        if stream.kind == "instruction":
            raise UsageError(
                f"stream {stream.name!r} asks for answers in words; set objective.kind = 'language', or another stream "
                "kind (cross-domain) to classify"
            )
        names = name_rows(backbone, stream.class_names, seed) if settings.head == "names" else None
        return cls(settings, backbone.dim, seed, names)

    @property
    def wants_features(self) -> bool:
        """True if `open` needs the features of the task's training data."""
        return self.settings.head == "means" or (self.settings.head == "cosine" and self.settings.imprint)

    def open(self, classes: Sequence[int], learn: Sequence[int], features: Tensor | None, labels: Tensor) -> None:
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

    def cross_entropy(self, features: Tensor, labels: Tensor, classes: Sequence[int]) -> Tensor:
        """Return the cross-entropy of each example among `classes`: features [N, d], labels [N] -> [N]."""
        order = torch.tensor(list(classes), device=labels.device)
        hit = labels[:, None] == order
        if not bool(hit.any(1).all()):
            missing = sorted(set(labels[~hit.any(1)].tolist()))
            raise DataError(f"labels {missing} are not among the classes {list(classes)} this loss ranks")
        return F.cross_entropy(self.head.logits(features, classes).float(), hit.float().argmax(1), reduction="none")

    def close(self, classes: Sequence[int], domain: int, features: Tensor, labels: Tensor) -> None:
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

    def run(self, backbone: Backbone, inputs: Mapping[str, Tensor], *, hidden: bool = False) -> Outputs:
        """Run the base for one feature row an example."""
        if not hidden:
            return Outputs(backbone.features(inputs))
        features, states = backbone.states(inputs)
        return Outputs(features, states, real=(inputs.get("attention_mask"),) * len(states))

    def losses(self, outputs: Outputs, batch: Batch, classes: Sequence[int]) -> Tensor:
        """Return each example's cross-entropy among `classes`: [n]."""
        return self.cross_entropy(outputs.features, batch.labels, classes)

    def logits(self, outputs: Outputs, batch: Batch, classes: Sequence[int]) -> Tensor:
        """Return the head's scores of `classes`: [n, len(classes)]."""
        return self.head.logits(outputs.features, classes).float()

    def loss_classes(self, learning: Learning, task: Task) -> tuple[int, ...]:
        """Return the task's own classes, or all seen so far, where the settings or a rehearsal ask for that."""
        return learning.seen if self._ranks_seen(learning) else task.classes

    def _ranks_seen(self, learning: Learning) -> bool:
        return learning.rehearses if self.settings.classes is None else self.settings.classes == "seen"

    def begin_task(self, learning: Learning, task: Task) -> None:
        """Open the head's rows for the classes of `task`."""
        features = learning.features(task.train, learning.blocks_for(task)) if self.wants_features else None
        learn = learning.seen if self._ranks_seen(learning) or learning.old_classes else task.classes
        self.open(task.classes, learn, features, task.train.labels.to(self.means.means.device))

    def end_task(self, learning: Learning, task: Task) -> None:
        """Take the class means of a finished task, if they are to answer."""
        if self.settings.predict == "head":
            return
        for member in learning.members(task):
            features = learning.features(member.train, learning.blocks_for(member))
            self.close(member.classes, member.index, features, member.train.labels.to(features.device))

    def refresh(self, learning: Learning, rows: Tensor, task: Task) -> None:
        """Take the class means of earlier tasks again from remembered rows, if they are to answer."""
        if self.settings.predict == "head":
            return
        for t in (t for t in rows[:, 0].unique().tolist() if t != task.index):
            old = learning.stream.tasks[t].train.take(rows[rows[:, 0] == t, 1])
            features = learning.features(old, learning.blocks_for(learning.stream.tasks[t]))
            present = tuple(sorted(set(old.labels.tolist())))
            self.close(present, t, features, old.labels.to(features.device))

    def score(self, learning: Learning, task: Task, split: Split, sink: Sink | None = None) -> float | None:
        """Return the accuracy on `split`, each example ranked among `candidates`; None before all can be answered."""
        candidates = self.candidates(learning, task)
        if not set(task.classes) <= set(candidates):
            return None
        features = learning.features(split, learning.blocks_for(task), sink=sink)
        labels = split.labels.to(features.device)
        learning.add_up([] if sink is None else sink.sums())
        return int((self.answer(features, candidates) == labels).sum()) / len(labels)

    def candidates(self, learning: Learning, task: Task) -> list[int]:
        """Return the classes a task's test examples are ranked among: what can be answered, as the stream allows."""
        known = self.known()
        if learning.oracle or learning.stream.candidates == "task":
            return sorted(known & set(task.classes))
        return sorted(known if learning.stream.candidates == "all" else known & set(learning.seen))

    def banks(self) -> Mapping[str, Bank]:
        """Return the head's rows."""
        return {"head": self.head.bank}

    def state(self) -> dict[str, Tensor]:
        """Return the class means."""
        return {"means": self.means.means, "owners": self.means.owners}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take the class means back."""
        device = self.means.means.device
        self.means.means, self.means.owners = state["means"].to(device), state["owners"].to(device)

    def files(self, record: Mapping[str, Any]) -> dict[str, Content]:
        """Return head and class means, with what each row stands for."""
        tensors, blocks = self.head.bank.state()
        means = {"means.means": self.means.means, "means.owners": self.means.owners}
        head = {"settings": self.settings.model_dump(), "classes": blocks, **record}
        return {
            "head.json": json.dumps(head, indent=1).encode(),
            "head.safetensors": tensor_writer(
                {**{f"head.{name}": tensor for name, tensor in tensors.items()}, **means}
            ),
        }

    def _rows(self, classes: Sequence[int], features: Tensor | None, labels: Tensor) -> Tensor | None:
        if not self.wants_features:
            return None
        assert features is not None
        return class_means(features, labels, classes)
