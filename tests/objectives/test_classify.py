"""The objective on plain tensors: which classes a loss sees, which rows learn, and how an example is answered."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rankwise.config import ClassifySettings
from rankwise.errors import DataError
from rankwise.objectives import Classify, class_means
from rankwise.seeds import generator

DIM = 6
FIRST, SECOND = (7, 2, 4), (1, 3)


def randn(*shape: int, key: str = "x") -> Tensor:
    return torch.randn(*shape, generator=generator(0, key))


NAMES = F.normalize(randn(10, DIM, key="names"), dim=1)


def data(classes: tuple[int, ...], count: int = 30) -> tuple[Tensor, Tensor]:
    """Return features around a direction of each class, and labels."""
    labels = torch.tensor(classes)[torch.arange(count) % len(classes)]
    centres = randn(10, DIM, key="centres")
    return centres[labels] + 0.2 * randn(count, DIM, key=f"noise {classes}"), labels


def objective(**settings: Any) -> Classify:
    return Classify(ClassifySettings(**settings), DIM, 0, NAMES if settings.get("head") == "names" else None)


def begin(target: Classify, classes: tuple[int, ...], learn: tuple[int, ...] | None = None) -> None:
    features, labels = data(classes)
    target.open(classes, classes if learn is None else learn, features if target.wants_features else None, labels)


def after_two_tasks(**settings: Any) -> Classify:
    target = objective(**settings)
    for domain, classes in enumerate((FIRST, SECOND)):
        begin(target, classes)
        target.close(classes, domain, *data(classes))
    return target


def rows(target: Classify, classes: tuple[int, ...]) -> Tensor:
    weight = target.head.bank.tensor("weight")
    return torch.stack([weight[target.head.classes.index(c)] for c in classes]).detach().clone()


# the loss


@pytest.mark.parametrize("head", ["cosine", "linear", "names", "means"])
@pytest.mark.parametrize("classes", [SECOND, FIRST + SECOND, (3, 4, 1)])
def test_the_loss_is_cross_entropy_over_the_columns_of_the_ranked_classes(head, classes):
    target = after_two_tasks(head=head)
    features, labels = data(tuple(c for c in classes if c in SECOND))
    weight, order = rows(target, classes), list(classes)
    if head == "linear":
        logits = features @ weight.T
    else:
        logits = 16.0 * F.normalize(features, dim=1) @ F.normalize(weight, dim=1).T
    expected = F.cross_entropy(logits, torch.tensor([order.index(c) for c in labels.tolist()]), reduction="none")
    torch.testing.assert_close(target.cross_entropy(features, labels, classes), expected)


def test_the_order_of_the_ranked_classes_does_not_matter():
    target = after_two_tasks()
    features, labels = data(SECOND)
    one, other = (target.cross_entropy(features, labels, order) for order in ((1, 3, 7), (7, 3, 1)))
    torch.testing.assert_close(one, other)


def test_each_example_has_its_own_loss_so_that_cuts_add_up():
    target = after_two_tasks()
    features, labels = data(SECOND)
    whole = target.cross_entropy(features, labels, SECOND)
    parts = [target.cross_entropy(features[a:b], labels[a:b], SECOND) for a, b in ((0, 7), (7, 8), (8, 30))]
    assert whole.shape == (30,)
    torch.testing.assert_close(torch.cat(parts), whole)


def test_the_scale_is_that_of_the_settings():
    features, labels = data(FIRST)
    sharp, flat = (after_two_tasks(scale=scale, imprint=False) for scale in (32.0, 1.0))
    assert torch.equal(rows(sharp, FIRST), rows(flat, FIRST))
    logits = F.normalize(features, dim=1) @ F.normalize(rows(flat, FIRST), dim=1).T
    index = torch.tensor([FIRST.index(c) for c in labels.tolist()])
    for target, scale in ((sharp, 32.0), (flat, 1.0)):
        expected = F.cross_entropy(scale * logits, index, reduction="none")
        torch.testing.assert_close(target.cross_entropy(features, labels, FIRST), expected)


def test_labels_outside_the_ranked_classes_are_refused_by_name():
    target = after_two_tasks()
    features, labels = data(FIRST)
    with pytest.raises(DataError, match=r"labels \[4, 7\] are not among the classes \[2, 1\]"):
        target.cross_entropy(features, labels, (2, 1))


def test_the_loss_falls_when_features_move_along_its_gradient():
    target = after_two_tasks()
    features, labels = data(FIRST)
    features.requires_grad_()
    before = target.cross_entropy(features, labels, FIRST + SECOND).sum()
    before.backward()
    assert features.grad is not None
    after = target.cross_entropy(features.detach() - 0.01 * features.grad, labels, FIRST + SECOND).sum()
    assert after < before


# which rows learn


@pytest.mark.parametrize("head", ["cosine", "linear"])
def test_only_the_rows_of_the_task_learn(head):
    target = objective(head=head)
    begin(target, FIRST)
    begin(target, SECOND)
    old, new = rows(target, FIRST), rows(target, SECOND)
    features, labels = data(SECOND)
    rule = torch.optim.AdamW(target.parameters(), lr=0.1, weight_decay=0.1)
    assert sum(p.numel() for p in target.parameters()) == len(SECOND) * (DIM + (head == "linear"))
    for _ in range(5):
        rule.zero_grad()
        target.cross_entropy(features, labels, FIRST + SECOND).mean().backward()
        rule.step()
    assert torch.equal(rows(target, FIRST), old)
    assert not any(tensor.requires_grad for tensor in target.head.bank.frozen.tensors().values())
    assert (rows(target, SECOND) - new).norm(dim=1).min() > 0.1


def test_a_row_outside_the_ranked_classes_gets_no_gradient_though_it_may_learn():
    target = objective()
    begin(target, FIRST)
    begin(target, SECOND, learn=FIRST + SECOND)
    features, labels = data(SECOND)
    target.cross_entropy(features, labels, SECOND).sum().backward()
    gradient = target.head.bank.live["weight"].grad
    assert gradient is not None and gradient.shape == (5, DIM)
    where = [target.head.classes.index(c) for c in FIRST]
    assert torch.equal(gradient[where], torch.zeros(3, DIM))
    assert (gradient[[target.head.classes.index(c) for c in SECOND]].norm(dim=1) > 0).all()


def test_a_linear_head_learns_its_biases():
    target = objective(head="linear")
    begin(target, FIRST)
    features, labels = data(FIRST)
    target.cross_entropy(features, labels, FIRST).sum().backward()
    gradient = target.head.bank.live["bias"].grad
    assert gradient is not None and gradient.shape == (3,) and gradient.abs().min() > 0


@pytest.mark.parametrize("head", ["names", "means"])
def test_rows_given_are_frozen(head):
    target = after_two_tasks(head=head)
    assert not list(target.parameters())
    features, labels = data(SECOND)
    features.requires_grad_()
    target.cross_entropy(features, labels, SECOND).sum().backward()
    assert features.grad is not None and features.grad.norm() > 0


# where rows start


def test_an_imprinted_row_is_its_class_mean():
    target = objective()
    assert target.wants_features
    begin(target, FIRST)
    assert torch.equal(rows(target, FIRST), class_means(*data(FIRST), FIRST))


def test_a_row_starts_at_random_where_it_is_not_imprinted():
    for settings in ({"imprint": False}, {"head": "linear"}):
        target = objective(**settings)
        assert not target.wants_features
        begin(target, FIRST)
        assert (rows(target, FIRST).abs() <= DIM**-0.5).all() and rows(target, FIRST).norm() > 0


def test_rows_of_a_class_that_comes_again_stay():
    """As in a stream whose tasks share their classes."""
    target = objective()
    begin(target, FIRST)
    before = rows(target, FIRST)
    features, labels = data(FIRST)
    target.open(FIRST, FIRST, -features, labels)
    assert torch.equal(rows(target, FIRST), before) and len(target.head.classes) == 3


def test_means_as_rows_are_those_at_the_start_of_the_task():
    target = objective(head="means")
    begin(target, FIRST)
    features, labels = data(FIRST)
    target.close(FIRST, 0, features.flip(1), labels)
    assert torch.equal(rows(target, FIRST), class_means(features, labels, FIRST))


def test_names_as_rows_are_those_given_for_each_class():
    target = objective(head="names")
    assert not target.wants_features
    begin(target, SECOND)
    assert torch.equal(rows(target, SECOND), NAMES[list(SECOND)])


def test_named_classes_can_be_answered_before_they_are_learnt():
    target = objective(head="names", predict="head")
    assert target.known() == frozenset(range(10))
    assert torch.equal(target.answer(3 * NAMES, range(10)), torch.arange(10))


def test_names_without_name_rows_are_refused():
    with pytest.raises(DataError, match='head = "cosine"'):
        Classify(ClassifySettings(head="names"), DIM, 0)


# answers


@pytest.mark.parametrize("predict", ["means", "head"])
@pytest.mark.parametrize("head", ["cosine", "linear", "means"])
def test_answers_come_from_the_candidates_alone(predict, head):
    target = after_two_tasks(predict=predict, head=head)
    features, _ = data(FIRST)
    for candidates in (SECOND, (4,), (3, 7, 1)):
        assert set(target.answer(features, candidates).tolist()) <= set(candidates)


@pytest.mark.parametrize("predict", ["means", "head"])
def test_separate_classes_are_answered_rightly_after_both_tasks(predict):
    target = after_two_tasks(predict=predict)
    for classes in (FIRST, SECOND):
        features, labels = data(classes)
        accuracy = (target.answer(features, FIRST + SECOND) == labels).float().mean()
        assert accuracy > 0.9


def test_means_and_head_answer_each_for_itself():
    means, head = after_two_tasks(predict="means"), after_two_tasks(predict="head")
    features, labels = data(FIRST)
    for target in (means, head):
        target.means.means = target.means.means.roll(1, 0)  # every mean now stands under another class
    assert (means.answer(features, FIRST + SECOND) == labels).float().mean() < 0.5
    assert (head.answer(features, FIRST + SECOND) == labels).float().mean() > 0.9


def test_what_is_known_depends_on_who_answers():
    means, head = objective(predict="means"), objective(predict="head")
    for target in (means, head):
        assert target.known() == frozenset()
        begin(target, FIRST)
    assert (means.known(), head.known()) == (frozenset(), frozenset(FIRST))
    means.close(FIRST, 0, *data(FIRST))
    assert means.known() == frozenset(FIRST)


def test_a_class_seen_in_two_domains_is_answered_in_both():
    target = objective()
    features, labels = data(FIRST)
    begin(target, FIRST)
    target.close(FIRST, 0, features, labels)
    alone = (target.answer(-features, FIRST) == labels).float().mean()
    target.close(FIRST, 1, -features, labels)
    assert alone < 0.5
    for domain in (features, -features):
        assert (target.answer(domain, FIRST) == labels).float().mean() > 0.9
