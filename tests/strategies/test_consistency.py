"""The distance of states is what it says, is zero between equal copies, and is asked of remembered examples only."""

from __future__ import annotations

import pytest
import torch
from lab import begin, learn, left, steps, terms_of

from rankwise.errors import ConflictError
from rankwise.strategies.consistency import apart

REPLAY = {"kind": "replay", "size": 10, "batch_size": 4}
EMA = {"kind": "ema", "decay": 0.9}
PARTS = (REPLAY, EMA, {"kind": "consistency"})


def states(layers: int = 3, grad: bool = False) -> list[torch.Tensor]:
    return [torch.randn(2, 4, 5, requires_grad=grad) for _ in range(layers)]


def test_it_is_the_mean_over_layers_tokens_and_channels():
    fast, slow = states(), states()
    wanted = torch.stack([(f - s).square().mean((1, 2)) for f, s in zip(fast, slow, strict=True)]).mean(0)
    torch.testing.assert_close(apart(fast, slow, [None] * 3), wanted)


def test_equal_states_are_not_pulled():
    fast = states(grad=True)
    loss = apart(fast, [s.detach().clone() for s in fast], [None] * 3)
    assert torch.equal(loss.detach(), torch.zeros(2))
    assert all(not g.any() for g in torch.autograd.grad(loss.sum(), fast))


def test_padding_does_not_count():
    fast, slow = states(), states()
    tokens = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])
    found = apart(fast, slow, [tokens] * 3)
    cut = apart([f[:1, :2] for f in fast], [s[:1, :2] for s in slow], [None] * 3)
    torch.testing.assert_close(found[:1], cut)
    torch.testing.assert_close(found[1:], apart(fast, slow, [None] * 3)[1:])


def test_upwards_counts_only_where_the_slow_value_is_larger():
    fast, slow = [torch.tensor([[[1.0, 2.0]]])], [torch.tensor([[[3.0, 0.0]]])]
    assert float(apart(fast, slow, [None])) == 4.0 and float(apart(fast, slow, [None], upwards=True)) == 2.0


def test_it_is_asked_of_remembered_examples_alone(lab):
    learner = lab.learner("lora", *PARTS)
    done = learn(learner, 1)
    task = begin(learner, learner.tasks[1])
    list(steps(learner, task, 2, done))
    own, rehearsal = terms_of(learner, task, done + 2, 2)
    assert rehearsal.name == "rehearsal"
    learner.model.eval()
    with torch.no_grad():
        new, old = own.losses(own.batch), rehearsal.losses(rehearsal.batch)
        assert torch.equal(new, learner.losses(own.batch, learner.classes(task)))
        gap = old - learner.losses(rehearsal.batch, learner.seen)
    assert (gap > 0).all()


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_slow_copy_is_read_within_the_step_and_changes_no_gradient_of_the_loss(lab, accumulate):
    """With no weight, the steps are those without it: laying the slow copy over the model leaves the graph alone."""
    found = []
    for part in ((), ({"kind": "consistency", "weight": 0.0},)):
        learner = lab.learner("lora", REPLAY, EMA, *part, train={"accumulate": accumulate}, adapter={"dropout": 0.3})
        learn(learner, 2)
        found.append(torch.cat([p.detach().flatten() for p in learner.model.parameters() if p.requires_grad]))
    assert torch.equal(*found)


@pytest.mark.parametrize(("method", "kind"), [("lora", "text"), ("mora", "image"), ("finetune", "image")])
def test_each_step_in_a_sitting_of_its_own(lab, tmp_path, method, kind):
    whole = lab.run(tmp_path / "whole", method, *PARTS, kind=kind)
    assert left(lab.in_sittings(tmp_path / "parts", method, *PARTS, kind=kind)) == left(whole)


@pytest.mark.parametrize(("held", "missing"), [(EMA, "replay buffer"), (REPLAY, "slow copy")])
def test_without_a_slow_copy_or_a_buffer_it_is_refused_by_name(lab, held, missing):
    with pytest.raises(ConflictError, match=f"strategy 'consistency' needs the {missing} of another strategy"):
        lab.learner("lora", held, {"kind": "consistency"})
