"""Class rows that grow and freeze, and nearest class means over several domains."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rankwise.objectives import ClassMeans, Head, class_means
from rankwise.seeds import generator

DIM = 6


def randn(*shape: int, key: str = "x") -> Tensor:
    return torch.randn(*shape, generator=generator(0, key))


def row(head: Head, c: int) -> Tensor:
    return head.bank.tensor("weight")[head.classes.index(c)]


# class means


def test_a_mean_is_the_direction_of_the_mean_of_unit_features():
    features, labels = randn(40, DIM), torch.arange(40) % 3
    means = class_means(features, labels, (2, 0))
    for i, c in enumerate((2, 0)):
        mean = (features / features.norm(dim=1, keepdim=True))[labels == c].mean(0)
        torch.testing.assert_close(means[i], mean / mean.norm())
    torch.testing.assert_close(means.norm(dim=1), torch.ones(2))


def test_no_example_weighs_more_for_being_long():
    features, labels = randn(40, DIM), torch.arange(40) % 3
    long = features * torch.linspace(0.01, 100, 40)[:, None]
    torch.testing.assert_close(class_means(long, labels, (0, 1, 2)), class_means(features, labels, (0, 1, 2)))


# rows


def test_new_classes_get_rows_and_known_ones_keep_theirs():
    head = Head(DIM, "cosine", 16.0, seed=0)
    first, second = randn(2, DIM, key="first"), randn(3, DIM, key="second")
    head.widen((4, 1), first)
    head.widen((1, 7, 4), second)
    assert head.classes == (4, 1, 7)
    assert torch.equal(row(head, 4), first[0]) and torch.equal(row(head, 1), first[1])
    assert torch.equal(row(head, 7), second[1])


def test_a_row_drawn_at_random_depends_on_seed_and_class_alone():
    one, two, other = Head(DIM, "cosine", 16.0, 0), Head(DIM, "cosine", 16.0, 0), Head(DIM, "cosine", 16.0, 1)
    one.widen((0, 1, 2), None)
    two.widen((2,), None)
    other.widen((2,), None)
    assert torch.equal(row(one, 2), row(two, 2))
    assert not torch.equal(row(one, 2), row(one, 1)) and not torch.equal(row(one, 2), row(other, 2))


def test_learning_some_classes_freezes_the_others_and_keeps_every_row_with_its_class():
    head = Head(DIM, "linear", 1.0, seed=0)
    head.widen(range(5), None)
    rows = {c: row(head, c).clone() for c in range(5)}
    x = randn(3, DIM)
    before = head.logits(x, range(5))
    for learnt in ((3, 1), (0,), (), (4, 2, 0, 1, 3), (1, 9)):
        head.learn(learnt)
        assert {int(b.label) for b in head.bank.blocks if b.live} == set(learnt) & set(range(5))
        assert all(torch.equal(row(head, c), rows[c]) for c in range(5))
        assert torch.equal(head.logits(x, range(5)), before)
    assert sum(p.numel() for p in head.parameters()) == DIM + 1


@pytest.mark.parametrize("kind", ["cosine", "linear"])
def test_logits_come_in_the_order_asked_for(kind):
    head = Head(DIM, kind, 3.0, seed=0)
    head.widen((5, 2, 8), None)
    head.learn((2,))
    x = randn(4, DIM)
    together = head.logits(x, (8, 5, 2))
    for i, c in enumerate((8, 5, 2)):
        assert torch.allclose(together[:, i : i + 1], head.logits(x, (c,)))


def test_a_cosine_logit_is_the_scaled_cosine():
    head = Head(DIM, "cosine", 7.0, seed=0)
    head.widen((0, 1), randn(2, DIM, key="rows") * 100)
    x = randn(4, DIM)
    expected = 7.0 * F.cosine_similarity(x[:, None], torch.stack([row(head, 0), row(head, 1)])[None], dim=-1)
    torch.testing.assert_close(head.logits(x, (0, 1)), expected)
    torch.testing.assert_close(head.logits(50 * x, (0, 1)), expected)


def test_a_linear_logit_is_row_times_feature_plus_bias():
    head = Head(DIM, "linear", 7.0, seed=0)
    head.widen((0, 1), None)
    with torch.no_grad():
        head.bank.live["bias"].copy_(torch.tensor([0.5, -2.0]))
    x = randn(4, DIM)
    expected = torch.stack([x @ row(head, 0) + 0.5, x @ row(head, 1) - 2.0], 1)
    torch.testing.assert_close(head.logits(x, (0, 1)), expected)


# nearest means


def test_the_nearest_mean_of_any_domain_speaks_for_its_class():
    means = ClassMeans(2)
    angles = {(0, 0): 0.0, (1, 0): 90.0, (0, 1): 180.0, (1, 1): 270.0}
    for (c, domain), angle in angles.items():
        direction = torch.tensor([[math.cos(math.radians(angle)), math.sin(math.radians(angle))]])
        means.put((c,), domain, direction)
    assert means.classes == (0, 1) and means.means.shape == (4, 2)
    x = torch.tensor([[math.cos(math.radians(a)), math.sin(math.radians(a))] for a in (10, 100, 170, 260)]) * 5
    logits = means.logits(x, (0, 1))
    assert logits.argmax(1).tolist() == [0, 1, 0, 1]
    torch.testing.assert_close(logits.amax(1), torch.full((4,), math.cos(math.radians(10))))


def test_a_mean_is_replaced_only_for_its_class_and_domain():
    means = ClassMeans(DIM)
    old, new = F.normalize(randn(3, DIM, key="old"), dim=1), F.normalize(randn(2, DIM, key="new"), dim=1)
    means.put((0, 1, 2), 0, old)
    means.put((1,), 1, new[:1])
    means.put((1,), 0, new[1:])
    held = {tuple(owner): mean for owner, mean in zip(means.owners.tolist(), means.means, strict=True)}
    assert held.keys() == {(0, 0), (1, 0), (2, 0), (1, 1)}
    for key, expected in {(0, 0): old[0], (2, 0): old[2], (1, 1): new[0], (1, 0): new[1]}.items():
        assert torch.equal(held[key], expected)


def test_a_class_without_a_mean_is_never_the_answer():
    means = ClassMeans(DIM)
    means.put((3,), 0, F.normalize(randn(1, DIM), dim=1))
    logits = means.logits(-means.means, (1, 3))
    assert logits[0, 0] == -torch.inf and logits.argmax(1).tolist() == [1]
