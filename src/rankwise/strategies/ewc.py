"""Elastic weight consolidation: what mattered for earlier tasks is held where they left it (arXiv 1612.00796).

The authorities differ in the estimate of the Fisher information, and its size differs by orders of magnitude between
them, so that a strength found with one says nothing about another; each has a name here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rankwise.adapters import Change
from rankwise.config import Count, NotNegative
from rankwise.errors import ConflictError
from rankwise.seeds import generator
from rankwise.strategies.base import Setting, Strategy
from rankwise.strategies.host import Host, Term, weights_of
from rankwise.streams import Batch, Task

Piece = tuple[Tensor, float]
"""A loss, and what its squared gradient weighs."""


def fisher(parameters: Sequence[Tensor], pieces: Iterable[Piece]) -> list[Tensor]:
    """Return the mean over `pieces` of weight * gradient^2, one tensor a parameter: a diagonal of the Fisher.

    Each piece's gradient is taken before the next piece is asked for. A parameter that no piece reaches gets zeros.
    """
    sums, count = [torch.zeros_like(parameter) for parameter in parameters], 0
    for loss, weight in pieces:
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        for total, gradient in zip(sums, gradients, strict=True):
            if gradient is not None:
                total.add_(gradient.square(), alpha=weight)
        count += 1
    return [total / max(count, 1) for total in sums]


def penalty(values: Sequence[Tensor], anchors: Sequence[Tensor], importance: Sequence[Tensor]) -> Tensor:
    """Return sum F (theta - theta*)^2 over all elements, without the factor 1/2 (as Mammoth and Avalanche have it)."""
    held = zip(values, anchors, importance, strict=True)
    return torch.stack([(f * (value - anchor).square()).sum() for value, anchor, f in held]).sum()


@dataclass(frozen=True)
class EwcSettings:
    """`[[strategy]] kind = "ewc"`: hold what mattered for earlier tasks."""

    strength: NotNegative = 100.0
    """lambda. Its right size depends on the estimator: pick it on validation data of the first tasks."""
    estimator: Literal["empirical", "weighted", "batch", "sampled"] = "empirical"
    """Whose squared gradients. empirical: each example's, at its label; weighted: the same, times the probability of
    the label (Mammoth); batch: those of a batch's mean loss, far smaller (Avalanche); sampled: each example's, at a
    label drawn from the model (the true Fisher)."""
    mode: Literal["online", "offline"] = "online"
    """online: one Fisher, the earlier decayed, around the newest weights; offline: one of each task, around its own."""
    decay: NotNegative = 1.0
    """gamma, factor on the earlier Fisher (online)."""
    samples: Count = 256
    """Rows of a task its Fisher is taken over, drawn once; each costs a forward and a backward of its own. estimator =
    "batch" takes all rows."""


@dataclass
class Held:
    """Where some tasks left the weights, and how much each mattered, by the names in the model."""

    anchors: dict[str, Tensor]
    importance: dict[str, Tensor]


class Ewc(Strategy):
    """Adds strength * sum F (theta - theta*)^2, from the second task on, over the weights that live through the stream.

    These are the factors (or atoms) of the adapter, or the weights of a base that learns; never the head, whose rows
    come with their classes (arXiv 2203.17269). A method with fresh blocks for each task is refused: its earlier blocks
    are frozen already, and no name of a fresh one means what it meant before.
    """

    name = "ewc"
    Settings = EwcSettings
    reads = frozenset({"live"})
    writes = {"loss": "add"}

    def __init__(self, settings: EwcSettings, seed: int) -> None:
        """Start with nothing to hold."""
        super().__init__(settings, seed)
        self.held: list[Held] = []

    def misfit(self, setting: Setting) -> str | None:
        """Refuse where no weight lives through the stream."""
        if not setting.learns:
            return "a method that trains the head alone: there is no weight to hold; remove 'ewc'"
        if setting.growth != "keep":
            return (
                f"adapter.growth = {setting.growth!r}: each task has blocks of its own and earlier ones are frozen, "
                "so there is nothing to hold; set adapter.growth = \"keep\" where the method allows it, or remove 'ewc'"
            )
        if setting.reshaper:
            return f"{setting.reshaper!r}, which changes the blocks while they learn; remove one of them"
        if setting.words and self.settings.estimator == "sampled":
            return "answers in words: estimator = 'sampled' draws classes; use 'empirical'"
        return None

    def terms(self, host: Host, step: int) -> Sequence[Term]:
        """Return the penalty, once there is a past."""
        if not self.held:
            return ()
        live = weights_of(host)
        for held in self.held:
            _follow(held, live)
        return (Term(self.name, None, lambda _: self.settings.strength * self.penalty(live)),)

    def penalty(self, live: Mapping[str, Tensor]) -> Tensor:
        """Return the sum over what is held, for weights by name."""
        names = list(live)

        def row(table: Mapping[str, Tensor]) -> list[Tensor]:
            return [table[name] for name in names]

        return torch.stack([penalty(row(live), row(h.anchors), row(h.importance)) for h in self.held]).sum()

    def end_task(self, host: Host, task: Task) -> Sequence[Change]:
        """Take the Fisher over the finished task, and hold the weights where they are."""
        live = weights_of(host)
        found = fisher(list(live.values()), self.pieces(host, task))
        held = Held({name: p.detach().clone() for name, p in live.items()}, dict(zip(live, found, strict=True)))
        if self.settings.mode == "online" and self.held:
            _follow(self.held[0], live)
            for name, before in self.held[0].importance.items():
                held.importance[name] += self.settings.decay * before
        self.held = [*(self.held if self.settings.mode == "offline" else ()), held]
        return ()

    def pieces(self, host: Host, task: Task) -> Iterator[Piece]:
        """Yield the losses whose gradients the estimator squares, in evaluation mode: an example or a batch each."""
        rng = generator(self.seed, "fisher", task.index)
        chosen = torch.zeros(len(task.train), dtype=torch.bool)
        chosen[torch.randperm(len(task.train), generator=rng)[: self.settings.samples]] = True
        start = 0
        for batch in host.batches(task):
            rows = [i for i in range(len(batch)) if chosen[start + i]]
            start += len(batch)
            ends = [slice(i, i + 1) for i in rows] if self.settings.estimator != "batch" else [slice(0, len(batch))]
            for where in ends:
                part = batch.rows(where)
                with host.evaluating(part):
                    yield ESTIMATORS[self.settings.estimator](host, part, host.classes(task), rng)

    def state(self) -> dict[str, Tensor]:
        """Return all that is held."""
        tables = [(f"{i}", table, part) for i, held in enumerate(self.held) for table, part in vars(held).items()]
        return {f"{i}/{table}/{name}": tensor for i, table, part in tables for name, tensor in part.items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take back what is held."""
        count = len({key.split("/")[0] for key in state})
        self.held = [Held({}, {}) for _ in range(count)]
        for key, tensor in state.items():
            i, table, name = key.split("/", 2)
            vars(self.held[int(i)])[table][name] = tensor.clone()


def _at_label(host: Host, batch: Batch, classes: Sequence[int], rng: torch.Generator) -> Piece:
    return host.losses(batch, classes).mean(), 1.0


def _at_label_weighted(host: Host, batch: Batch, classes: Sequence[int], rng: torch.Generator) -> Piece:
    loss = host.losses(batch, classes).mean()
    return loss, float(torch.exp(-loss.detach()))


def _at_draw(host: Host, batch: Batch, classes: Sequence[int], rng: torch.Generator) -> Piece:
    logits = host.objective.logits(host.forward(batch), batch, classes)
    drawn = torch.multinomial(torch.softmax(logits.detach().cpu(), -1), 1, generator=rng)[:, 0]
    return F.cross_entropy(logits, drawn.to(logits.device)), 1.0


ESTIMATORS = {"empirical": _at_label, "weighted": _at_label_weighted, "batch": _at_label, "sampled": _at_draw}


def _follow(held: Held, live: Mapping[str, nn.Parameter]) -> None:
    """Bring what is held to the device of the weights; refuse weights that are others than those held."""
    for table in (held.anchors, held.importance):
        shapes = {name: tensor.shape for name, tensor in table.items()}
        if shapes != {name: p.shape for name, p in live.items()}:
            raise ConflictError(
                "strategy 'ewc' holds weights that are no longer there: the method changes what learns between tasks; "
                "remove 'ewc', or choose a method whose weights live through the stream"
            )
        table.update({name: tensor.to(live[name].device) for name, tensor in table.items()})
