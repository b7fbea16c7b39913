"""The slow copy is the closed form of the average, is what answers and what is frozen and saved."""

from __future__ import annotations

import pytest
import torch
from lab import begin, ends, learn, left, steps, values
from safetensors.torch import load_file

from rankwise.adapters import banks_of
from rankwise.strategies.ema import interpolate, kept


def ema(decay: float = 0.5, warmup: bool = True) -> dict[str, object]:
    return {"kind": "ema", "decay": decay, "warmup": warmup}


def test_the_warm_up_takes_the_first_step_whole_and_rises_to_the_decay():
    assert [kept(k, 0.99) for k in range(4)] == [0.0, 0.5, 1 - 1 / 3, 0.75]
    assert kept(10_000, 0.99) == 0.99 and kept(0, 0.99, warm=False) == 0.99


def test_interpolation_is_exact_at_both_ends():
    slow, fast = {"a": torch.randn(50) * 1e3}, {"a": torch.randn(50) / 3}
    before = slow["a"].clone()
    interpolate(slow, fast, 1.0)
    assert torch.equal(slow["a"], before)
    interpolate(slow, fast, 0.25)
    torch.testing.assert_close(slow["a"], 0.25 * before + 0.75 * fast["a"])
    interpolate(slow, fast, 0.0)
    assert torch.equal(slow["a"], fast["a"])


@pytest.mark.parametrize("method", ["lora", "mora", "finetune"])
def test_it_is_the_closed_form_within_a_task_and_over_the_edge_where_blocks_are_kept(lab, method):
    learner, decay, done = lab.learner(method, ema(0.7, warmup=False)), 0.7, 0
    wanted: dict[str, torch.Tensor] = {}
    for task in learner.tasks:
        begin(learner, task)
        start = values(learner)
        wanted = start if method == "mora" or not wanted else wanted  # a fresh block begins anew
        for _ in steps(learner, task, 3, done):
            done += 1
            fast = values(learner)
            wanted = {name: decay * wanted[name] + (1 - decay) * fast[name] for name in fast}
            for name, tensor in wanted.items():
                torch.testing.assert_close(learner.strategies[0].slow[f"base.{name}"], tensor, rtol=1e-5, atol=1e-6)
        learner.end_task(task)
    assert learner.strategies[0].steps == done == 6


@pytest.mark.parametrize("warmup", [True, False])
def test_a_decay_of_zero_is_the_fast_copy_and_of_one_never_moves(lab, warmup):
    for decay in (0.0, 1.0):
        learner = lab.learner("lora", ema(decay, warmup))
        task = begin(learner, learner.tasks[0])
        start = dict(learner.strategies[0].slow)
        start = {name: tensor.clone() for name, tensor in start.items()}
        list(steps(learner, task, 1 if warmup and decay else 3))
        fast, slow = learner.snapshot().tensors, learner.strategies[0].slow
        still = decay == 1.0 and not warmup
        assert all(torch.equal(slow[name], start[name] if still else fast[name]) for name in fast)


def test_it_moves_after_every_step_and_no_gradient_reaches_it(lab):
    learner = lab.learner("lora", ema(0.9))
    task, before = begin(learner, learner.tasks[0]), None
    for _ in steps(learner, task, 3):
        now = torch.cat([tensor.flatten() for tensor in learner.strategies[0].slow.values()])
        assert before is None or not torch.equal(now, before)
        assert not now.requires_grad and all(t.grad is None for t in learner.strategies[0].slow.values())
        before = now


def test_the_slow_copy_is_scored_and_the_fast_one_goes_on(lab):
    learner = lab.learner("lora", ema(0.95, warmup=False))
    task = begin(learner, learner.tasks[0])
    list(steps(learner, task, 3))
    fast = values(learner)
    found = learner.features(task.test)
    assert all(torch.equal(tensor, fast[name]) for name, tensor in values(learner).items())
    with torch.no_grad():
        for name, parameter in learner.model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(learner.strategies[0].slow[f"base.{name}"])
    torch.testing.assert_close(learner.features(task.test), found)


def test_a_copy_that_never_moves_answers_like_the_base(lab):
    learner = lab.learner("lora", ema(1.0, warmup=False))
    before = learner.features(learner.tasks[0].test)
    task = begin(learner, learner.tasks[0])
    list(steps(learner, task, 3))
    torch.testing.assert_close(learner.features(task.test), before)


def test_what_is_saved_is_the_slow_copy(lab, tmp_path):
    out = lab.run(tmp_path / "run", "lora", ema(0.9))
    end, saved = ends(out)[-1], load_file(out / "adapter" / "adapter.safetensors")
    slow = {name: tensor for name, tensor in end.items() if name.startswith("strategies/ema/slow/base.")}
    pools = torch.cat([tensor.flatten() for tensor in slow.values()]).sort().values
    assert torch.equal(torch.cat([tensor.flatten() for tensor in saved.values()]).sort().values, pools)
    fast = torch.cat([t.flatten() for n, t in end.items() if n.startswith("sites") and "live." in n]).sort().values
    assert fast.shape == pools.shape and not torch.equal(fast, pools)


def test_what_is_frozen_is_what_has_answered(lab):
    learner = lab.learner("mora", ema(0.9))
    done = learn(learner, 1)
    slow = {name: tensor.clone() for name, tensor in learner.strategies[0].slow.items()}
    begin(learner, learner.tasks[1])
    for _, bank in banks_of(learner.model).values():
        for name, tensor in bank.frozen.tensors().items():
            assert done and any(torch.equal(tensor, held) for key, held in slow.items() if key.endswith(name))


def test_the_heads_rows_go_on_from_the_slow_ones_when_a_task_ends(lab):
    learner = lab.learner("lora", ema(0.9, warmup=False), objective={"predict": "head"})
    task = begin(learner, learner.tasks[0])
    list(steps(learner, task, 3))
    (name,) = (n for n in learner.live() if n.startswith("head."))
    slow = learner.strategies[0].slow[name].clone()
    assert not torch.equal(learner.live()[name], slow)
    learner.end_task(task)
    begin(learner, learner.tasks[1])
    held = learner.objective.head.bank.frozen.tensors()["weight"]
    assert torch.equal(held, slow)


@pytest.mark.parametrize(("method", "kind"), [("lora", "text"), ("mora", "image"), ("finetune", "text")])
def test_each_step_in_a_sitting_of_its_own(lab, tmp_path, method, kind):
    whole = lab.run(tmp_path / "whole", method, ema(), kind=kind)
    assert left(lab.in_sittings(tmp_path / "parts", method, ema(), kind=kind)) == left(whole)
