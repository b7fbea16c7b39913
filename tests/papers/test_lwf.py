"""The teacher is the model before the task, to the end of it; both forms pull to it as they say."""

from __future__ import annotations

import pytest
import torch
from lab import begin, ends, learn, left, same, steps, terms_of
from torch import Tensor

from rankwise import papers
from rankwise.strategies.lwf import distilled, one_by_one

LWF = {"kind": "lwf"}
MANY = {"kind": "lwf", "form": "multi-class"}


def gradient(loss: Tensor, of: Tensor) -> Tensor:
    return torch.autograd.grad(loss.sum(), of)[0]


# the losses, on plain tensors


def test_the_softmax_form_is_the_divergence_at_a_temperature():
    teacher, student = torch.randn(5, 4), torch.randn(5, 4, requires_grad=True)
    for t in (1.0, 2.0, 5.0):
        q, p = torch.softmax(teacher / t, 1), torch.softmax(student / t, 1)
        torch.testing.assert_close(distilled(student, teacher, t), (q * (q / p).log()).sum(1))
        torch.testing.assert_close(gradient(distilled(student, teacher, t), student), ((p - q) / t).detach())
        torch.testing.assert_close(distilled(student, teacher, t, squared=True), t * t * distilled(student, teacher, t))


def test_a_student_equal_to_its_teacher_is_not_pulled():
    logits = torch.randn(6, 3)
    student = logits.clone().requires_grad_()
    loss = distilled(student, logits, 2.0)
    assert torch.equal(loss.detach(), torch.zeros(6))
    torch.testing.assert_close(gradient(loss, student), torch.zeros(6, 3), atol=1e-7, rtol=0)


def test_the_gradient_of_the_multi_class_form_by_hand():
    new = torch.tensor([False, False, False, True, True])
    teacher, student = torch.randn(4, 5), torch.randn(4, 5, requires_grad=True)
    hit = torch.eye(5)[torch.tensor([3, 4, 4, 3])].bool()
    found = gradient(one_by_one(student, teacher, hit, new).mean(), student)
    towards = torch.where(new, hit.float(), torch.sigmoid(teacher))
    torch.testing.assert_close(found, (torch.sigmoid(student) - towards).detach() / (4 * 5))
    other = gradient(one_by_one(student, teacher + 3, hit, new).mean(), student)
    assert torch.equal(other[:, new], found[:, new]) and not torch.equal(other[:, ~new], found[:, ~new])


# in a run


def test_the_method_is_lora_with_the_strategy(digits):
    lora, lwf = papers.method("lora"), papers.method("lwf")
    assert lwf.defaults == {"strategy": [{"kind": "lwf"}]}
    assert (lwf.gate, lwf.form, lwf.growth, lwf.live) == (lora.gate, lora.form, lora.growth, lora.live)
    teachers = [tuple(end["strategies/lwf/teacher"].shape) for end in ends(digits("lwf").path)]
    assert teachers == [(24, 4), (24, 8), (0, 0)]  # rows of the task to come, classes so far; none follows the last


def answers(learner, task, classes) -> Tensor:
    """Return what the model that answers now gives for the training rows of `task`: [n, C]."""
    return learner.each(task.train, lambda b: learner.objective.logits(learner.forward(b), b, classes))


@pytest.mark.parametrize("form", ["softmax", "multi-class"])
@pytest.mark.parametrize("method", ["lora", "mora", "finetune"])
def test_the_teacher_is_the_model_before_the_task_to_its_end(lab, method, form):
    learner = lab.learner(method, {"kind": "lwf", "form": form})
    done = learn(learner, 1)
    first, second = learner.tasks
    before = answers(learner, second, sorted(first.classes))
    teacher = learner.strategies[0].teacher.clone()
    assert torch.equal(teacher, before) and not teacher.requires_grad
    begin(learner, second)  # a block of mora's may move the function: the teacher must not
    list(steps(learner, second, 3, done))
    assert torch.equal(learner.strategies[0].teacher, teacher)
    assert not torch.equal(answers(learner, second, sorted(first.classes)), before)


def test_the_first_task_and_the_first_step_have_nothing_to_distil(lab):
    learner, plain = lab.learner("lora", LWF), lab.learner("lora")
    for each in (learner, plain):
        task = begin(each, each.tasks[0])
    batch = learner.loader(task).batch(0)
    assert torch.equal(learner.own(batch, task.classes), plain.own(batch, task.classes))
    done = 0
    for each in (learner, plain):
        done = len(list(steps(each, each.tasks[0], 3)))
        each.end_task(each.tasks[0])
        task = begin(each, each.tasks[1])
    batch = learner.loader(task).batch(0)
    torch.testing.assert_close(learner.own(batch, task.classes), plain.own(batch, task.classes), rtol=1e-5, atol=1e-5)
    list(steps(learner, learner.tasks[1], 2, done))
    assert (learner.own(batch, task.classes) - learner.losses(batch, task.classes)).detach().max() > 1e-6


def test_it_keeps_old_answers_where_plain_training_loses_them(lab):
    apart = {}
    for name, parts in {"plain": (), "lwf": ({**LWF, "weight": 3e2},)}.items():
        learner = lab.learner("lora", *parts, train={"lr": 5e-3})
        done = learn(learner, 1, 6)
        first, second = learner.tasks
        before = torch.softmax(answers(learner, second, first.classes), 1)
        begin(learner, second)
        list(steps(learner, second, 10, done))
        apart[name] = float((torch.softmax(answers(learner, second, first.classes), 1) - before).abs().mean())
    assert apart["lwf"] < 0.7 * apart["plain"]


def test_the_multi_class_loss_takes_the_place_of_the_tasks_own(lab):
    learner = lab.learner("lora", {**MANY, "scale": 3.0})
    task = begin(learner, learner.tasks[0])
    batch = learner.loader(task).batch(0)
    z = learner.objective.logits(learner.forward(batch), batch, task.classes)
    hit = (batch.labels[:, None] == torch.tensor(task.classes)).float()
    wanted = torch.nn.functional.binary_cross_entropy_with_logits(z, hit, reduction="none").mean(1) * 3
    torch.testing.assert_close(learner.own(batch, task.classes), wanted)
    assert [term.name for term in terms_of(learner, task, 0)] == ["classify"]


def test_no_weight_is_the_method_without_it_but_for_the_live_rows(lab, tmp_path):
    plain = ends(lab.run(tmp_path / "plain", "lora"))[-1]
    none = ends(lab.run(tmp_path / "none", "lora", {**LWF, "weight": 0.0}))[-1]
    assert same(plain, none, [name for name in plain if name.startswith("sites")])


@pytest.mark.parametrize(("part", "kind"), [(LWF, "text"), (MANY, "image")], ids=["softmax", "multi-class"])
def test_each_step_in_a_sitting_of_its_own(lab, tmp_path, part, kind):
    whole = lab.run(tmp_path / "whole", "lora", part, kind=kind)
    assert left(lab.in_sittings(tmp_path / "parts", "lora", part, kind=kind)) == left(whole)


@pytest.mark.parametrize("part", [LWF, MANY], ids=["softmax", "multi-class"])
def test_micro_batches_add_up_to_the_same_step(lab, tmp_path, part):
    whole = ends(lab.run(tmp_path / "whole", "lora", part, train={"optimizer": "sgd"}))[-1]
    cut = ends(lab.run(tmp_path / "cut", "lora", part, train={"optimizer": "sgd", "accumulate": 2}))[-1]
    for name in (n for n in whole if n.startswith("sites")):
        torch.testing.assert_close(cut[name], whole[name], rtol=1e-4, atol=1e-5)
