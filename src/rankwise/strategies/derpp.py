"""Dark replay (DER++, arXiv 2004.07211): remembered examples are held to the scores they once had, and to labels.

The form of Mammoth, by the paper's authors: two independent draws a step, scores stored at the step that saw the
example, a reservoir fed at every step. With beta = 0 this is DER.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rankwise.config import Count, NotNegative
from rankwise.objectives import Outputs
from rankwise.seeds import derive, generator
from rankwise.strategies.base import Setting, Strategy
from rankwise.strategies.host import Host, Term, places_of
from rankwise.streams import Batch


class Reservoir:
    """An exact uniform sample, at each moment, of all that was offered: `size` rows with the scores they had.

    The n-th offer (from 0) takes slot n while there is room, else slot r, drawn from 0 .. n, where r < size.
    """

    def __init__(self, size: int, seed: int) -> None:
        """Make an empty reservoir."""
        self.size, self.seed, self.offered = size, seed, 0
        self.rows = torch.empty(0, 2, dtype=torch.long)
        """(task index, position in its training split); a row seen in two epochs was offered twice."""
        self.scores = torch.empty(0, 0)
        """[len(rows), classes of the stream]; 0 for classes not begun then."""

    def offer(self, rows: Tensor, scores: Tensor) -> None:
        """Offer rows [n, 2] with their scores [n, C], in order."""
        if not len(self.rows):
            self.scores = scores[:0]
        for row, score in zip(rows, scores, strict=True):
            slot = derive(self.seed, "reservoir", self.offered) % (self.offered + 1)
            self.offered += 1
            if len(self.rows) < self.size:
                self.rows, self.scores = torch.cat([self.rows, row[None]]), torch.cat([self.scores, score[None]])
            elif slot < self.size:
                self.rows[slot], self.scores[slot] = row, score

    def draw(self, count: int, name: str, step: int) -> Tensor:
        """Return up to `count` slots, without replacement, in the order of their tasks; a function of (seed, step)."""
        slots = torch.randperm(len(self.rows), generator=generator(self.seed, name, step))[:count]
        return slots[self.rows[slots, 0].argsort(stable=True)]


@dataclass(frozen=True)
class DerppSettings:
    """`[[strategy]] kind = "derpp"`: rehearse stored examples with the scores they had."""

    size: Count = 200
    """Examples the buffer holds."""
    batch_size: Count = 32
    """Stored examples in each of the two draws of a step."""
    alpha: NotNegative = 0.3
    """Factor on the mean squared distance to the stored scores."""
    beta: NotNegative = 0.5
    """Factor on the loss at the labels; 0: DER."""
    refresh_means: bool = True
    """Take the class means of earlier tasks again from the buffer when a task ends."""


class Derpp(Strategy):
    """Adds alpha * mean (f(x') - z')^2 + beta * mean loss(f(x''), y''), for two draws from one buffer.

    z' are the scores of the step in which the example was stored, before its update, for the classes known then; the
    mean is over those. Labels are ranked among all classes seen.
    """

    name = "derpp"
    Settings = DerppSettings
    reads = frozenset({"loss", "memory"})
    writes = {"loss": "add", "replay buffer": "set"}
    brings_batches = True
    learns_old_classes = True

    def __init__(self, settings: DerppSettings, seed: int) -> None:
        """Start with an empty buffer."""
        super().__init__(settings, seed)
        self.buffer = Reservoir(settings.size, seed)
        self.pending: list[tuple[Tensor, Tensor]] = []
        """(ids, scores) of the new examples of the step under way; empty between steps."""

    def misfit(self, setting: Setting) -> str | None:
        """Refuse answers in words, which have no row of scores."""
        words = "answers in words: an example has scores for each token of its answer, too many to store; use 'replay'"
        return words if setting.words else None

    def terms(self, host: Host, step: int) -> Sequence[Term]:
        """Return both rehearsal losses, once the buffer holds anything."""
        if not len(self.buffer.rows):
            return ()
        names = ("scores", "labels")
        slots = [self.buffer.draw(self.settings.batch_size, name, step) for name in names]
        scores, labels = (host.examples(self.buffer.rows[s], (n, step)) for s, n in zip(slots, names, strict=True))
        seen = host.seen

        def to_scores(part: Batch) -> Tensor:
            now = host.objective.logits(host.forward(part), part, seen)
            known = part.inputs["known"]
            return ((now - part.inputs["scores"]).square() * known).sum(1) / known.sum(1)

        return (
            Term("derpp.scores", self._with_scores(host, scores, slots[0]), to_scores, self.settings.alpha),
            Term("derpp.labels", labels, lambda part: host.rehearse(part, seen), self.settings.beta),
        )

    def _with_scores(self, host: Host, batch: Batch, slots: Tensor) -> Batch:
        """Put the stored scores of the classes seen, and which of them were known then, beside the inputs."""
        seen = torch.tensor(host.seen)
        known = torch.stack([torch.isin(seen, torch.tensor(_until(host, int(t)))) for t in self.buffer.rows[slots, 0]])
        return replace(batch, inputs={**batch.inputs, "scores": self.buffer.scores[slots][:, seen], "known": known})

    def own(self, host: Host, batch: Batch, outputs: Outputs, losses: Tensor) -> Tensor:
        """Note the scores of new examples in the forward they are learnt from."""
        scores = host.objective.logits(outputs, batch, host.seen).detach().cpu()
        self.pending.append((batch.ids.cpu(), scores))
        return losses

    def follow(self, host: Host, step: int) -> None:
        """Offer the step's new examples with those scores, the same in every process."""
        ids = host.batch.ids.cpu()
        whole = torch.zeros(len(ids), 2 + max(c for task in host.tasks for c in task.classes))
        for part, scores in self.pending:
            here = (ids[:, None] == part).int().argmax(0)
            whole[here[:, None], torch.tensor(host.seen)] = scores.to(whole.dtype)
            whole[here, -1] = 1.0
        host.add_up([whole])
        places = places_of(host.task, host.batch)
        rows = torch.stack([torch.full_like(places, host.task.index), places], 1)
        found = whole[:, -1] > 0
        self.buffer.offer(rows[found], (whole[:, :-1] / whole[:, -1:])[found])
        self.pending = []

    def remembered(self) -> Tensor:
        """Return what the buffer holds, if class means are to be taken from it again."""
        return self.buffer.rows.unique(dim=0) if self.settings.refresh_means else self.buffer.rows[:0]

    def state(self) -> dict[str, Tensor]:
        """Return the buffer and the count of offers."""
        offered = torch.tensor(self.buffer.offered)
        return {"rows": self.buffer.rows, "scores": self.buffer.scores, "offered": offered}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take the buffer back."""
        self.buffer.rows, self.buffer.scores = state["rows"].clone(), state["scores"].clone()
        self.buffer.offered = int(state["offered"])


def _until(host: Host, task: int) -> list[int]:
    """Return the classes known while task `task` was learnt."""
    return sorted({c for each in host.tasks[: task + 1] for c in each.classes})
