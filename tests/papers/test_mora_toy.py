"""The claims of MoRA on the toy stream: it forgets little, and its atoms tell the tasks apart without a router."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from rankwise.adapters import Identity, banks_of, using
from rankwise.api import load, save
from rankwise.claims.mora import CLAIMS, MORA, Learnt, learn, next_block, start, train
from rankwise.claims.toys.maps import TASKS, maps

SEEDS = (0, 1, 2)


@pytest.fixture(scope="module", params=SEEDS)
def mora(request) -> Learnt:
    return learn(request.param, MORA)


@pytest.mark.parametrize("claim", CLAIMS[:2], ids=lambda claim: claim.name)
@pytest.mark.parametrize("seed", SEEDS)
def test_a_claim_holds_for_a_seed(claim, seed):
    values = claim.measure(seed)
    assert all(threshold.meets(values[threshold.value]) for threshold in claim.thresholds), values


def test_it_forgets_a_third_of_what_one_lora_does(mora):
    one = learn(mora.stream.seed, append=False)
    assert mora.forgotten <= 0.35 * one.forgotten


def test_the_baselines_learn_each_task_and_forget_it(mora):
    for baseline in (learn(mora.stream.seed), learn(mora.stream.seed, append=False)):
        assert max(baseline.just_learnt) < 0.1 and baseline.forgotten > 1.0


def test_appending_random_keys_moves_the_function_a_little(mora):
    assert all(0 < change < 0.1 for change in mora.moved), mora.moved


def test_a_saved_pool_gives_the_same_outputs(mora, tmp_path):
    save(mora.model, tmp_path / "pool")
    back = load(mora.stream.model(), tmp_path / "pool")
    (_, bank), *_ = banks_of(back).values()
    assert bank.size == TASKS * 8 and [block.live for block in bank.blocks] == [False] * 3 + [True]
    for task in range(TASKS):
        expected = mora.stream.update(mora.model, task)
        torch.testing.assert_close(mora.stream.update(back, task), expected, rtol=1e-6, atol=1e-6)


def test_old_atoms_never_change_and_have_no_gradient():
    stream = maps(0)
    model = start(stream, MORA)
    (_, bank), *_ = banks_of(model).values()
    old: dict[str, torch.Tensor] = {}
    for task in range(3):
        next_block(model, task, 0)
        train(model, stream, task, steps=20)
        for name, before in old.items():
            frozen = bank.frozen.tensors()[name]
            assert torch.equal(frozen, before) and not frozen.requires_grad and frozen.grad is None
        live = dict(bank.live.items())
        assert {id(p) for p in model.parameters() if p.requires_grad} == {id(p) for p in live.values()}
        assert all(p.grad is not None and p.grad.norm() > 0 for p in live.values())
        old = {name: bank.tensor(name).detach().clone() for name in bank.specs}


def test_without_a_gate_it_is_append_and_freeze_lora_to_the_bit():
    stream = maps(1)
    plain, dense = (start(stream, gate) for gate in (Identity(), replace(MORA, weights="dense")))
    for task in range(2):
        for model in (plain, dense):
            next_block(model, task, 1)
            with using(model, fused=False):  # the ablation has no other path
                train(model, stream, task, steps=20)
        assert torch.equal(stream.update(plain, task), stream.update(dense, task))
