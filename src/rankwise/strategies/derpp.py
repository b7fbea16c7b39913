"""Dark replay (DER++, arXiv 2004.07211): remembered examples are held to the scores they once had, and to labels.

    loss = mean l(f(x), y) + alpha mean ||f(x') - z'||^2 / k + beta mean l(f(x''), y'')

x' with its scores z', and x'' with its label y'', are two independent draws from one reservoir, which is offered the
new examples of every step with the scores they had in it, before the update. With beta = 0 this is DER. Changed from
the authors' code (Mammoth): the distance is over the k classes known when z' was stored, not over all columns of a head
that is as wide as the stream from the start.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

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
        self.rows, self.scores = self.rows.clone(), self.scores.clone() if len(self.rows) else scores[:0]
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
    """Adds both rehearsal losses; labels are ranked among all classes seen."""

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
        self.noted: dict[int, Tensor] = {}
        """Id -> scores of the classes seen, of this process's new examples in the step under way."""

    def misfit(self, setting: Setting) -> str | None:
        """Refuse answers in words, which have no row of scores."""
        words = "answers in words: an example has scores for each token of its answer, too many to store; use 'replay'"
        return words if setting.words else None

    def terms(self, host: Host, step: int) -> Sequence[Term]:
        """Return both rehearsal losses, once the buffer holds anything."""
        return (self._to_scores(host, step), self._to_labels(host, step)) if len(self.buffer.rows) else ()

    def _to_labels(self, host: Host, step: int) -> Term:
        slots = self.buffer.draw(self.settings.batch_size, "labels", step)
        batch = host.examples(self.buffer.rows[slots], ("labels", step))
        return Term("derpp.labels", batch, partial(host.rehearse, classes=host.seen), self.settings.beta)

    def _to_scores(self, host: Host, step: int) -> Term:
        slots, seen = self.buffer.draw(self.settings.batch_size, "scores", step), host.seen
        batch = host.examples(self.buffer.rows[slots], ("scores", step))
        known = [_known(host, int(task)) for task in self.buffer.rows[slots, 0]]
        stored = {"scores": self.buffer.scores[slots][:, seen], "known": torch.stack(known)}

        def distances(part: Batch) -> Tensor:
            now = host.objective.logits(host.forward(part), part, seen)
            known = part.inputs["known"]
            return ((now - part.inputs["scores"]).square() * known).sum(1) / known.sum(1)

        beside = replace(batch, inputs={**batch.inputs, **stored})
        return Term("derpp.scores", beside, distances, self.settings.alpha)

    def own(self, host: Host, batch: Batch, outputs: Outputs, losses: Tensor) -> Tensor:
        """Note the scores of new examples in the forward they are learnt from."""
        scores = host.objective.logits(outputs, batch, host.seen).detach().float().cpu()
        self.noted.update(zip(batch.ids.tolist(), scores, strict=True))
        return losses

    def follow(self, host: Host, step: int) -> None:
        """Offer the step's new examples with those scores, the same in every process."""
        ids, nothing = host.batch.ids.tolist(), torch.zeros(len(host.seen))
        scores = torch.stack([self.noted.get(i, nothing) for i in ids])
        times = torch.tensor([[float(i in self.noted)] for i in ids])  # processes that had it; 0: nobody learnt it
        host.add_up([scores, times])
        places = places_of(host.task, host.batch)
        rows = torch.stack([torch.full_like(places, host.task.index), places], 1)
        learnt = times[:, 0] > 0
        wide = torch.zeros(int(learnt.sum()), 1 + max(c for task in host.tasks for c in task.classes))
        wide[:, host.seen] = (scores / times)[learnt]
        self.buffer.offer(rows[learnt], wide)
        self.noted = {}

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


def _known(host: Host, task: int) -> Tensor:
    """Return which of the classes seen were known while task `task` was learnt: [classes seen] bool."""
    then = {c for each in host.tasks[: task + 1] for c in each.classes}
    return torch.tensor([c in then for c in host.seen])
