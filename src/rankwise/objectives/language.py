"""Language: the loss of an answer, how probable candidate answers are, and whether a written one is right."""

from __future__ import annotations

import string
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rankwise.adapters import Sink
from rankwise.config import LanguageSettings
from rankwise.errors import DataError, UsageError
from rankwise.models import Answers, Backbone, Language
from rankwise.objectives.base import Learning, Objective, Outputs
from rankwise.streams import Batch, Split, Stream, Task, lengths_of


def answer_log_probs(logits: Tensor, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return the log-probability of each example's answer, and its number of tokens: float32 [n] and int64 [n].

    `logits` [n, A, V] are for `tokens` [n, A], which count where `mask` is 1: neither padding nor how a batch is cut
    changes an example's value.
    """
    real = mask.bool()
    costs = F.cross_entropy(logits[real].float(), tokens[real], reduction="none")
    return torch.zeros(real.shape, device=costs.device).masked_scatter(real, -costs).sum(1), real.sum(1)


def answer_losses(logits: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
    """Return each example's mean cross-entropy over the tokens of its answer, the end token counted: [n]."""
    total, count = answer_log_probs(logits, tokens, mask)
    return -total / count


def label_scores(totals: Sequence[Tensor], counts: Sequence[Tensor], by: str) -> Tensor:
    """Return how probable each candidate answer is: [n, C], from [n] log-probabilities and token counts of each.

    by = "total" is the log-probability itself, which a longer answer lowers; by = "mean" divides by the tokens.
    """
    scores = {"total": list(totals), "mean": [t / c for t, c in zip(totals, counts, strict=True)]}
    return torch.stack(scores[by], 1)


def normalised(text: str) -> str:
    """Bring an answer to the form in which answers are compared: lower case, no punctuation, single spaces.

    The rule of Super-NaturalInstructions (arXiv 2204.07705), which the O-LoRA benchmark uses. A text of nothing but
    punctuation keeps it, so that it can be told from no answer.
    """
    lower = text.lower()
    bare = " ".join(lower.translate(str.maketrans("", "", string.punctuation)).split())
    return bare or " ".join(lower.split())


def exact_match(answers: Sequence[str], references: Sequence[str]) -> Tensor:
    """Say which answers equal their reference after `normalised`: bool [n]. An empty answer is wrong."""
    pairs = zip(answers, references, strict=True)
    return torch.tensor([bool(a.strip()) and normalised(a) == normalised(r) for a, r in pairs], dtype=torch.bool)


def pairs_of(split: Split) -> list[tuple[str, str]]:
    """Return the rows of an instruction task as (prompt, answer)."""
    rows: Sequence[Any] = list(split.inputs)
    return [(prompt, answer) for prompt, answer in rows]


def answers_of(task: Task) -> dict[int, str]:
    """Return the text of each of a task's answers by class id. Raises DataError where they cannot be ranked."""
    found: dict[int, set[str]] = defaultdict(set)
    for (_, answer), label in zip(pairs_of(task.train), task.train.labels.tolist(), strict=True):
        found[label].add(answer)
    if any(len(texts) > 1 for texts in found.values()):
        raise DataError(
            f"task {task.name!r}: its answers are no small set of labels; set objective.answer = 'generate'"
        )
    answers = {label: min(found[label]) for label in task.classes}
    if len({normalised(text) for text in answers.values()}) < len(answers):
        raise DataError(f"task {task.name!r}: answers {sorted(answers.values())} differ only in case or punctuation")
    return answers


class Write(Objective):
    """Answers in words: the loss is the cross-entropy of the answer given the prompt, by the model's own head."""

    metric = "exact_match"
    writes = True

    def __init__(self, settings: LanguageSettings, language: Language) -> None:
        """Make the objective for a base that was loaded with its language head."""
        super().__init__()
        self.settings, self.language = settings, language

    @classmethod
    def answers(cls, settings: LanguageSettings) -> Answers:
        """Return how the base must be able to answer."""
        return Answers(settings.form, settings.max_new_tokens, settings.end)

    @classmethod
    def made(cls, settings: LanguageSettings, backbone: Backbone, stream: Stream, seed: int) -> Write:
        """Make the objective of a run; raise UsageError or DataError where the stream does not ask for words."""
        if stream.kind != "instruction" or backbone.language is None:
            raise UsageError(
                f"objective.kind = 'language' asks for words, stream {stream.name!r} is {stream.kind}; set "
                '[stream] kind = "instruction"'
            )
        for task in stream.tasks if settings.answer == "labels" else ():
            answers_of(task)
        return cls(settings, backbone.language)

    def run(self, backbone: Backbone, inputs: Mapping[str, Tensor], *, hidden: bool = False) -> Outputs:
        """Run one forward over prompts with their answers."""
        reading = self.language.read(backbone.module, inputs)
        return Outputs(reading.features, reading.hidden if hidden else (), reading.logits, reading.real)

    def losses(self, outputs: Outputs, batch: Batch, classes: Sequence[int]) -> Tensor:
        """Return each example's mean cross-entropy over its answer's tokens: [n]; classes play no part."""
        assert outputs.logits is not None
        return answer_losses(outputs.logits, *self.language.targets(batch.inputs))

    def logits(self, outputs: Outputs, batch: Batch, classes: Sequence[int]) -> Tensor:
        """Return the logits of the first token of each answer: [n, vocabulary]; classes play no part."""
        assert outputs.logits is not None
        _, mask = self.language.targets(batch.inputs)
        rows = torch.arange(len(mask), device=mask.device)
        return outputs.logits[rows, mask.argmax(1)].float()

    def loss_classes(self, learning: Learning, task: Task) -> tuple[int, ...]:
        """Return the task's own."""
        return task.classes

    def score(self, learning: Learning, task: Task, split: Split, sink: Sink | None = None) -> float | None:
        """Return the share of rows answered right, from the first task on: a language model can always answer."""
        split = split.take(lengths_of(split).argsort(stable=True))  # rows of similar length need little padding
        right = self._written if self.settings.answer == "generate" else self._ranked
        hits = int(right(learning, task, split, sink).sum())
        learning.add_up([] if sink is None else sink.sums())
        return hits / len(split)

    def _written(self, learning: Learning, task: Task, split: Split, sink: Sink | None) -> Tensor:
        """Say which rows' greedily written answers match: [N]."""
        prompts, references = zip(*pairs_of(split), strict=True)
        asked = Split(list(prompts), split.labels, split.ids)
        tokens = learning.each(asked, partial(self._write, learning), learning.blocks_for(task), sink=sink)
        return exact_match(self.language.text(tokens), references)

    def _write(self, learning: Learning, batch: Batch) -> Tensor:
        """Return the answers' tokens, all equally wide: [n, answer_length]."""
        tokens = self.language.generate(learning.backbone.module, batch.inputs)
        return F.pad(tokens, (0, self.language.answer_length - tokens.shape[1]), value=self.language.end)

    def _ranked(self, learning: Learning, task: Task, split: Split, sink: Sink | None) -> Tensor:
        """Say for which rows the right one of the task's answers is the most probable: [N]."""
        answers, values = answers_of(task), []
        for text in answers.values():
            asked = Split([(prompt, text) for prompt, _ in pairs_of(split)], split.labels, split.ids)
            values.append(learning.each(asked, partial(self._weigh, learning), learning.blocks_for(task), sink=sink))
        totals, counts = zip(*(value.unbind(1) for value in values), strict=True)
        chosen = label_scores(totals, counts, self.settings.label_score).argmax(1).cpu()
        return torch.tensor(list(answers))[chosen] == split.labels

    def _weigh(self, learning: Learning, batch: Batch) -> Tensor:
        """Return [n, 2]: the log-probability of each row's answer, and its number of tokens."""
        logits = self.language.read(learning.backbone.module, batch.inputs).logits
        return torch.stack(answer_log_probs(logits, *self.language.targets(batch.inputs)), 1)
