"""Language on plain tensors: the loss of an answer, scores of candidate answers, and which answers are right."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rankwise.errors import DataError
from rankwise.models import Answers, load_backbone
from rankwise.objectives.language import (
    answer_log_probs,
    answer_losses,
    answers_of,
    exact_match,
    label_scores,
    normalised,
)
from rankwise.streams import Split, Task

ROWS, WIDTH, VOCABULARY = 3, 5, 7
LENGTHS = (5, 1, 3)
PAIRS = [("the cat sits on a mat", "yes"), ("the dog", "a good cat"), ("question : red ? answer :", "blue , red")]


@pytest.fixture
def made() -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(ROWS, WIDTH, VOCABULARY, generator=draw)
    tokens = torch.randint(0, VOCABULARY, (ROWS, WIDTH), generator=draw)
    mask = (torch.arange(WIDTH) < torch.tensor(LENGTHS)[:, None]).long()
    return logits, tokens, mask


def by_hand(logits: Tensor, tokens: Tensor, mask: Tensor) -> list[float]:
    probabilities = logits.double().softmax(-1)
    return [
        sum(float(probabilities[i, t, tokens[i, t]].log()) for t in range(mask.shape[1]) if mask[i, t])
        for i in range(len(tokens))
    ]


def test_the_log_probability_of_an_answer_is_the_sum_over_its_own_tokens(made):
    total, count = answer_log_probs(*made)
    assert torch.allclose(total.double(), torch.tensor(by_hand(*made), dtype=torch.float64), atol=1e-5)
    assert count.tolist() == list(LENGTHS)
    assert torch.equal(answer_losses(*made), -total / count)


def test_a_loss_does_not_depend_on_what_is_masked(made):
    logits, tokens, mask = made
    before = answer_losses(logits, tokens, mask)
    padding = mask == 0
    other = logits.masked_fill(padding[..., None], 1e4)
    assert torch.equal(answer_losses(other, tokens.masked_fill(padding, 6), mask), before)
    wider = [torch.cat([x, x[:, :2]], 1) for x in (logits, tokens)]
    assert torch.allclose(answer_losses(*wider, torch.cat([mask, torch.zeros(3, 2).long()], 1)), before, atol=1e-7)


def test_gradients_reach_only_the_answers_tokens_and_each_example_weighs_the_same(made):
    logits, tokens, mask = made
    logits.requires_grad_()
    answer_losses(logits, tokens, mask).sum().backward()
    reached = logits.grad.abs().sum(-1) > 0
    assert torch.equal(reached, mask.bool())


@pytest.mark.parametrize("kind", ["gpt2", "llama", "t5"])
def test_losses_do_not_depend_on_how_a_batch_is_cut(writers, kind):
    backbone = load_backbone(str(writers(kind)), answers=Answers(length=6))
    language = backbone.language

    def losses(pairs: list[tuple[str, str]]) -> Tensor:
        batch = backbone.encode(pairs)
        return answer_losses(language.read(backbone.module, batch).logits, *language.targets(batch))

    with torch.no_grad():
        together, alone = losses(PAIRS), torch.cat([losses([pair]) for pair in PAIRS])
    assert torch.allclose(together, alone, atol=1e-5)
    assert len(set(together.tolist())) == 3


def test_label_scores_rank_by_total_or_mean():
    totals = [torch.tensor([-2.0, -9.0]), torch.tensor([-3.0, -1.0])]
    counts = [torch.tensor([1, 3]), torch.tensor([3, 1])]
    assert label_scores(totals, counts, "total").argmax(1).tolist() == [0, 1]
    assert label_scores(totals, counts, "mean").argmax(1).tolist() == [1, 1]
    assert label_scores(totals, counts, "mean")[1, 0] == -3


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("  Science or technology.", "science or technology"),
        ("Very  Positive!", "very positive"),
        ("A\n", "a"),
        ('"False"', "false"),
    ],
)
def test_answers_are_compared_without_case_punctuation_and_spaces(text, other):
    assert normalised(text) == normalised(other)
    assert exact_match([text], [other]).tolist() == [True]


def test_an_empty_answer_is_wrong_and_counts():
    assert exact_match(["", " ", "...", "yes", "+"], ["yes", "", "yes", "Yes", "+"]).tolist() == [
        False,
        False,
        False,
        True,
        True,
    ]


def task(pairs: list[tuple[str, str]], labels: list[int]) -> Task:
    split = Split(pairs, torch.tensor(labels), torch.arange(len(pairs)))
    return Task("t", 0, tuple(sorted(set(labels))), split, None, split)


def test_answers_of_a_task_by_class():
    assert answers_of(task([("p", "b"), ("q", "a"), ("r", "b")], [4, 3, 4])) == {3: "a", 4: "b"}
    with pytest.raises(DataError, match="no small set of labels"):
        answers_of(task([("p", "b"), ("q", "a")], [0, 0]))
    with pytest.raises(DataError, match="differ only in case"):
        answers_of(task([("p", "A."), ("q", "a")], [0, 1]))
