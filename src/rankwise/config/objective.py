"""The `[objective]` table: what a task asks. Each kind has its own keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Tag

from rankwise.config.numbers import Count, Positive
from rankwise.config.section import Section


class ClassifySettings(Section):
    """`[objective]`: how classes are learnt and recognised; the defaults are those for which the adapter matters."""

    kind: Literal["classify"] = "classify"
    """The task asks for the class of an input."""
    head: Literal["cosine", "linear", "names", "means"] = "cosine"
    """Rows the loss is taken against. cosine: scaled cosine to trained rows; linear: trained rows and biases; names:
    rows frozen at the embedding of each class's name; means: rows frozen at the class means as the task starts."""
    classes: Literal["task", "seen"] | None = None
    """Classes the loss of a new example ranks: the current task's, or all seen so far. Default: seen where a strategy
    rehearses earlier examples, else task: without them, ranking all wipes out earlier tasks."""
    predict: Literal["means", "head"] = "means"
    """Who answers at test time: the nearest class mean, taken when a task ends, or the head."""
    imprint: bool = True
    """Start a cosine row at its class's mean feature instead of at random."""
    scale: Positive = 16.0
    """Factor on cosines in the loss. Raise it if the training loss stays high though accuracy is perfect."""
    lr: Positive = 0.01
    """Learning rate of the head's rows."""


class LanguageSettings(Section):
    """`[objective] kind = "language"`: answers are written, by a model with a language head."""

    kind: Literal["language"] = "language"
    """The task asks for an answer in words. Needs [stream] kind = "instruction"."""
    form: Literal["auto", "causal", "seq2seq"] = "auto"
    """causal: one stack reads on from the prompt (Llama, GPT-2); seq2seq: an encoder reads, a decoder writes (T5)."""
    answer: Literal["generate", "labels"] = "generate"
    """How a test row is answered. generate: greedily written, right if it equals the target but for case, punctuation
    and spaces; labels: the most probable of the task's answers."""
    label_score: Literal["total", "mean"] = "total"
    """What makes an answer probable, for answer = "labels": the log-probability of all its tokens, or its mean."""
    end: str | None = None
    """Token that ends an answer, as the tokenizer spells it; give one that the base knows, if it never learnt its
    end-of-text token. Default: that token."""
    max_new_tokens: Count = 32
    """Tokens of an answer at most, its end token counted; a target beyond loses its end."""


def _kind(values: Any) -> str:
    """Return the kind a table names; without one, it is about classes."""
    return str(values.get("kind", "classify")) if isinstance(values, Mapping) else str(values.kind)


ObjectiveSettings = Annotated[
    Annotated[ClassifySettings, Tag("classify")] | Annotated[LanguageSettings, Tag("language")], Discriminator(_kind)
]
