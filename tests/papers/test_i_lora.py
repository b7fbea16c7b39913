"""I-LoRA: what its slow copy is, what a step's loss is, and what is deployed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import rankwise
from rankwise import papers
from rankwise.config import merged
from rankwise.errors import ConflictError
from rankwise.models import fingerprint, load_backbone

REPLAY = {"kind": "replay", "size": 12, "batch_size": 0, "average": True}


def parts(decay: float = 0.9, warmup: bool = False, **consistency: object) -> list[dict[str, object]]:
    slow = {"kind": "ema", "decay": decay, "warmup": warmup}
    return [REPLAY, slow, {"kind": "consistency", "weight": 2.0, **consistency}]


def slow_of(learner) -> dict[str, torch.Tensor]:
    (found,) = (part.slow for part in learner.strategies if part.name == "ema")
    return {name.removeprefix("base."): t for name, t in found.items() if name.startswith("base.")}


def test_the_recipe_is_lora_with_three_strategies():
    lora, found = papers.method("lora"), papers.method("i-lora")
    assert [part["kind"] for part in found.defaults["strategy"]] == ["replay", "ema", "consistency"]
    assert (found.gate, found.growth, found.live, found.form) == (lora.gate, lora.growth, lora.live, lora.form)


def test_both_copies_start_equal_and_leave_the_base_as_it_was(lab):
    from lab import begin, values

    learner = lab.learner("i-lora", *parts())
    bare = learner.features(learner.tasks[0].test)
    begin(learner, learner.tasks[0])
    fast, slow = values(learner), slow_of(learner)
    assert fast.keys() == slow.keys() and all(torch.equal(slow[name], fast[name]) for name in fast)
    assert torch.equal(learner.features(learner.tasks[0].test), bare)


def test_the_slow_copy_is_the_closed_form_over_the_whole_stream(lab):
    """slow = lambda^k slow_0 + sum_i (1 - lambda) lambda^(k-i) fast_i, k counted across the edge of tasks."""
    from lab import begin, steps, values

    learner, decay, fasts, start = lab.learner("i-lora", *parts(0.8)), 0.8, [], None
    for task in learner.tasks:
        begin(learner, task)
        start = start or values(learner)
        before = slow_of(learner)
        before = {name: tensor.clone() for name, tensor in before.items()}
        for _ in steps(learner, task, 3, len(fasts)):
            fasts.append(values(learner))
            k = len(fasts)
            for name, tensor in slow_of(learner).items():
                wanted = decay**k * start[name]
                wanted = wanted + sum((1 - decay) * decay ** (k - 1 - i) * fast[name] for i, fast in enumerate(fasts))
                torch.testing.assert_close(tensor, wanted, rtol=0, atol=1e-6)
            assert any(not torch.equal(slow_of(learner)[name], before[name]) for name in before)
            assert all(tensor.grad is None and not tensor.requires_grad for tensor in slow_of(learner).values())
            before = {name: tensor.clone() for name, tensor in slow_of(learner).items()}
        learner.end_task(task)


def test_the_warm_up_makes_the_first_slow_copy_the_fast_one(lab):
    from lab import begin, steps, values

    learner = lab.learner("i-lora", *parts(0.99, warmup=True))
    list(steps(learner, begin(learner, learner.tasks[0]), 1))
    assert all(torch.equal(tensor, values(learner)[name]) for name, tensor in slow_of(learner).items())


@pytest.mark.parametrize("decay", [0.0, 1.0])
def test_at_both_ends_it_is_the_fast_copy_or_never_moves(lab, decay):
    from lab import begin, learn, values

    learner = lab.learner("i-lora", *parts(decay))
    begin(learner, learner.tasks[0])
    start = values(learner)
    learn(learner, 2)
    wanted = start if decay else values(learner)
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in slow_of(learner).items())
    assert any(not torch.equal(values(learner)[name], start[name]) for name in start)


def gradients(learner, terms, number: int = 0) -> list[torch.Tensor]:
    from rankwise.learning.step import backward

    for parameter in learner.live().values():
        parameter.grad = None
    for term in terms:
        backward(learner, term, number)
    return [p.grad.clone() for p in learner.live().values()]


@pytest.mark.parametrize("form", ["mse", "max"])
def test_the_gradient_of_a_later_step_is_that_of_the_papers_loss(lab, form):
    """1/2 [CE(x, y) + CE(x', y')] + gamma MSE with gamma = 1, by hand from forwards of both copies."""
    from lab import begin, learn, steps, terms_of

    learner = lab.learner("i-lora", *parts(form=form))
    done = learn(learner, 1)
    task = begin(learner, learner.tasks[1])
    list(steps(learner, task, 2, done))
    own, old = terms_of(learner, task, done + 2, 2)
    found = gradients(learner, [own, old])
    new_loss = learner.losses(own.batch, learner.classes(task)).mean()
    outputs = learner.forward(old.batch, hidden=True)
    old_loss = learner.objective.losses(outputs, old.batch, learner.seen).mean()
    slow = learner.under(learner.deployed(), lambda: learner.forward(old.batch, hidden=True)).hidden
    gaps = [
        h - s if form == "mse" else h - torch.maximum(h.detach(), s) for h, s in zip(outputs.hidden, slow, strict=True)
    ]
    mse = torch.stack([gap.square().mean() for gap in gaps]).mean()
    live = list(learner.live().values())
    wanted = torch.autograd.grad(0.5 * (new_loss + old_loss) + mse, live)
    assert float(mse) > 0 and len(own.batch) == len(old.batch) == 4
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)


def test_the_first_task_has_neither_replay_nor_consistency(lab):
    from lab import begin, terms_of

    same = {"objective": {"classes": "seen"}}
    learner, plain = lab.learner("i-lora", *parts(), **same), lab.learner("lora", **same)
    terms = []
    for each in (learner, plain):
        terms.append(terms_of(each, begin(each, each.tasks[0]), 0))
    assert [term.name for term in terms[0]] == ["classify"]
    for one, other in zip(gradients(learner, terms[0]), gradients(plain, terms[1]), strict=True):
        assert torch.equal(one, other)


def test_equal_copies_are_not_pulled_and_the_slow_one_does_not_touch_the_loss_of_the_fast(lab):
    from lab import begin, learn, terms_of

    learner = lab.learner("i-lora", *parts())
    done = learn(learner, 1)
    task = begin(learner, learner.tasks[1])
    (ema,) = (part for part in learner.strategies if part.name == "ema")
    ema.reshaped(learner)  # slow := fast
    own, old = terms_of(learner, task, done)
    learner.model.eval()
    assert torch.equal(old.losses(old.batch), learner.losses(old.batch, learner.seen))
    before = own.losses(own.batch)
    for tensor in ema.slow.values():
        tensor.add_(0.1)
    assert torch.equal(own.losses(own.batch), before)
    assert (old.losses(old.batch) - learner.losses(old.batch, learner.seen)).min() > 0


def test_a_slow_copy_that_never_moves_answers_like_the_base(lab):
    """The mistake of the released code: whoever reads the slow copy after training sees it."""
    from lab import learn

    stuck, moving = (lab.learner("i-lora", *parts(decay)) for decay in (1.0, 0.5))
    bare = stuck.features(stuck.tasks[0].test)
    learn(stuck, 2)
    learn(moving, 2)
    torch.testing.assert_close(stuck.features(stuck.tasks[0].test), bare)
    assert (moving.features(moving.tasks[0].test) - bare).abs().max() > 1e-3


@pytest.fixture(scope="module")
def run(lab, tmp_path_factory) -> Path:
    return lab.run(tmp_path_factory.mktemp("run") / "run", "i-lora", *parts(0.7))


def test_the_buffer_holds_no_more_than_its_size_and_later_steps_rehearse(run):
    from lab import ends, events

    assert [len(end["strategies/replay/rows"]) for end in ends(run)] == [12, 12]
    names = [set(event["losses"]) for event in events(run, "step")]
    assert names == [{"classify"}] * 2 + [{"classify", "rehearsal"}] * 2


def test_the_slow_copy_is_saved_and_merges_to_the_same_function(lab, run):
    from lab import ends

    base, images = load_backbone(str(lab.folder / "image")), torch.randint(0, 255, (6, 8, 8), dtype=torch.uint8)
    before = fingerprint(base.module)
    model = rankwise.load(base.module, run / "adapter")
    inputs = base.encode(images)
    slow = {n.removeprefix("strategies/ema/slow/base."): t for n, t in ends(run)[-1].items() if "ema/slow/base." in n}
    saved = load_file(run / "adapter" / "adapter.safetensors")
    held = sorted(torch.cat([t.flatten() for t in saved.values()]).tolist())
    assert held == sorted(torch.cat([t.flatten() for t in slow.values()]).tolist())
    with torch.no_grad():
        found = base.features(inputs)
        rankwise.merge(model)
        torch.testing.assert_close(base.features(inputs), found, rtol=1e-5, atol=1e-5)
    fresh = load_backbone(str(lab.folder / "image"))
    assert fingerprint(fresh.module) == before  # and the run's own base is that of the file
    assert rankwise.resume(run).results["final_average"] is not None


def test_each_step_in_a_sitting_of_its_own(lab, tmp_path, run):
    from lab import left

    assert left(lab.in_sittings(tmp_path / "parts", "i-lora", *parts(0.7))) == left(run)


def test_micro_batches_add_up_to_the_same_step(lab, tmp_path):
    from lab import ends

    made = [
        ends(lab.run(tmp_path / str(n), "i-lora", *parts(), train={"accumulate": n, "optimizer": "sgd"}))[-1]
        for n in (1, 2)
    ]
    for name in (n for n in made[0] if n.startswith("sites")):
        torch.testing.assert_close(made[1][name], made[0][name], rtol=1e-4, atol=1e-6)


def test_without_a_past_it_is_refused_by_name(lab):
    with pytest.raises(ConflictError, match="order = 'at-once'"):
        rankwise.run(merged(lab.config("joint", *parts()), {}))
