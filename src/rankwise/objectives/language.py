"""Language: the loss of an answer, how probable candidate answers are, and whether a written one is right."""

from __future__ import annotations

import string
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from rankwise.models import Answered


def answer_log_probs(answered: Answered) -> tuple[Tensor, Tensor]:
    """Return the log-probability of each example's answer, and its number of tokens: float32 [n] and [n].

    Prompt and padding do not count, so neither padding nor how a batch is cut changes an example's value.
    """
    real = answered.mask.bool()
    costs = F.cross_entropy(answered.logits[real].float(), answered.tokens[real], reduction="none")
    total = torch.zeros(real.shape, device=costs.device).masked_scatter(real, -costs).sum(1)
    return total, real.sum(1)


def answer_losses(answered: Answered) -> Tensor:
    """Return each example's mean cross-entropy over the tokens of its answer, the end token counted: [n]."""
    total, count = answer_log_probs(answered)
    return -total / count


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
