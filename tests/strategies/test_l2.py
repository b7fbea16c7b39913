"""The distance is to the weights before the task, from the first task on, and its gradient is the plain one."""

from __future__ import annotations

import pytest
import torch
from lab import begin, ends, events, learn, left, same, steps, terms_of, values

from rankwise.errors import ConflictError
from rankwise.strategies.l2 import distance

L2 = {"kind": "l2", "strength": 0.5}


def test_the_distance_and_its_gradient_by_hand():
    theta = torch.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
    anchor = torch.tensor([[1.0, 0.0], [3.0, 7.0]])
    loss = distance([theta, theta], [anchor, anchor])
    assert float(loss.detach()) == 2 * (4 + 9)
    loss.backward()
    torch.testing.assert_close(theta.grad, 2 * 2 * (theta - anchor).detach())


@pytest.mark.parametrize("method", ["lora", "mora", "finetune"])
def test_it_is_zero_at_the_first_step_of_every_task_and_not_once_weights_move(lab, method):
    learner, done = lab.learner(method, L2), 0
    for task in learner.curriculum:
        begin(learner, task)
        before = values(learner)
        for _ in steps(learner, task, 2, done):
            done += 1
        loss = terms_of(learner, task, done)[-1].losses(None)
        live = {n: p for n, p in learner.model.named_parameters() if p.requires_grad}
        assert float(loss.detach()) > 0  # from the first task on
        gradients = torch.autograd.grad(loss, list(live.values()))
        for (name, parameter), gradient in zip(live.items(), gradients, strict=True):
            torch.testing.assert_close(gradient, 2 * 0.5 * (parameter - before[name]).detach())
        with torch.no_grad():
            for name, parameter in live.items():
                parameter.copy_(before[name])
        assert float(terms_of(learner, task, done)[-1].losses(None).detach()) == 0
        learner.end_task(task)


def test_the_head_is_not_held(lab):
    learner = lab.learner("lora", L2)
    begin(learner, learner.tasks[0])
    assert not any("head" in name for name in learner.strategies[0].anchors)


def test_no_strength_is_the_method_without_it_and_a_strong_one_stays_nearer(lab, tmp_path):
    plain = ends(lab.run(tmp_path / "plain", "lora"))[-1]
    none = ends(lab.run(tmp_path / "none", "lora", {**L2, "strength": 0.0}))[-1]
    strong = ends(lab.run(tmp_path / "strong", "lora", {**L2, "strength": 100.0}))[-1]
    names = [name for name in plain if name.startswith(("sites", "head"))]
    assert same(plain, none, names)
    sizes = [sum(float(e[n].norm()) for n in names if n.endswith("live.B")) for e in (plain, strong)]
    assert sizes[1] < sizes[0]


@pytest.mark.parametrize("method", ["lora", "mora", "finetune"])
def test_each_step_in_a_sitting_of_its_own_on_texts(lab, tmp_path, method):
    whole = lab.run(tmp_path / "whole", method, L2, kind="text")
    assert all("l2" in event["losses"] for event in events(whole, "step"))
    assert left(lab.in_sittings(tmp_path / "parts", method, L2, kind="text")) == left(whole)


def test_it_goes_with_joint_training_as_a_decay_towards_the_start(lab):
    learner = lab.learner("joint", L2)
    learn(learner, 1)
    assert learner.strategies[0].anchors


def test_a_head_alone_is_refused_by_name(lab):
    with pytest.raises(ConflictError, match="strategy 'l2' and a method that trains the head alone"):
        lab.learner("linear-probe", L2)
