"""The routed mixture of LoRA experts: gates, balance loss, noise, weights of whole blocks."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rankwise
from rankwise.adapters import Aux, Change, adapter_of, banks_of, grow, using
from rankwise.adapters.experts import Experts
from rankwise.adapters.mixture import top_softmax
from rankwise.api import adapt, export, merge
from rankwise.errors import ConflictError, UsageError
from rankwise.seeds import generator

WIDTH, OUT, RANK, TOKENS = 12, 9, 3, 40


def randn(*shape: int, key: str) -> Tensor:
    return torch.randn(*shape, generator=generator(0, key))


def inputs() -> Tensor:
    return randn(4, TOKENS // 4, WIDTH, key="x")


def model(blocks: int = 1, **form: Any) -> nn.Module:
    """Return one adapted layer whose blocks all write something; the last one is live."""
    torch.manual_seed(0)
    found = adapt(nn.Sequential(nn.Linear(WIDTH, OUT)), "moe-lora", rank=RANK, form=form)
    for label in range(2, blocks + 1):
        move(found)
        grow(found, [Change("freeze"), Change("append", str(label), RANK)], 0)
    move(found)
    return found.eval()


def move(found: nn.Module) -> None:
    (_, bank), *_ = banks_of(found).values()
    for name, tensor in bank.live.items():
        if name != "noise":
            nn.init.normal_(tensor, generator=generator(0, name, *bank.labels))


def balance(found: nn.Module, tokens: Tensor | None = None) -> Tensor:
    """Return the balance losses of one forward, summed."""
    aux = Aux()
    with using(found, aux=aux, tokens=tokens):
        found(inputs())
    return torch.as_tensor(aux.total())


def by_hand(found: nn.Module, x: Tensor, k: int) -> Tensor:
    """Return what the experts add, one token, block and expert at a time."""
    (_, bank), *_ = banks_of(found).values()
    form = adapter_of(found).branch
    assert isinstance(form, Experts)
    out = torch.zeros(*x.shape[:-1], OUT)
    a, b = bank.tensor("A").split(RANK), bank.tensor("B").split(RANK, 1)
    for block in range(len(bank.labels)):
        logits = x @ bank.tensor("router")[block].T
        for place in [(i, j) for i in range(x.shape[0]) for j in range(x.shape[1])]:
            best, chosen = logits[place].topk(k)
            for g, e in zip(best.softmax(0), chosen + block * form.experts, strict=True):
                out[place] += g * (b[e] @ (a[e] @ x[place]))
    return out


@pytest.mark.parametrize(("blocks", "k"), [(1, 1), (1, 2), (1, 4), (3, 2)])
def test_the_update_is_the_gated_sum_of_the_chosen_experts_of_each_block(blocks, k):
    found = model(blocks, top_k=k)
    x = inputs()
    with torch.no_grad():
        added = found(x) - adapter_free(found, x)
        torch.testing.assert_close(added, by_hand(found, x, k), rtol=1e-4, atol=1e-4)


def adapter_free(found: nn.Module, x: Tensor) -> Tensor:
    with using(found, blocks=()):
        return found(x)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_exactly_k_gates_act_and_they_sum_to_one(k):
    gates = top_softmax(randn(50, 5, key="scores"), k)
    assert ((gates > 0).sum(-1) == k).all()
    torch.testing.assert_close(gates.sum(-1), torch.ones(50), rtol=0, atol=1e-6)


def test_with_all_experts_and_equal_scores_the_update_is_their_average():
    found = model(top_k=4)
    (_, bank), *_ = banks_of(found).values()
    with torch.no_grad():
        bank.live["router"].zero_()
        x = inputs()
        mean = x @ bank.tensor("A").T @ bank.tensor("B").T / 4
        torch.testing.assert_close(found(x) - adapter_free(found, x), mean, rtol=1e-5, atol=1e-5)


def test_a_fresh_block_changes_no_bit_whatever_the_noise():
    base = nn.Sequential(nn.Linear(WIDTH, OUT))
    before = base(inputs())
    found = adapt(base, "moe-lora", rank=RANK, form={"noisy": True})
    assert torch.equal(found.train()(inputs()), before) and torch.equal(found.eval()(inputs()), before)


def test_uniform_routing_costs_k_and_all_tokens_on_the_same_experts_cost_more():
    found = model(top_k=2, balance=1.0)
    (_, bank), *_ = banks_of(found).values()
    with torch.no_grad():
        bank.live["router"].mul_(1e-6)  # almost equal scores, so that the ties still fall evenly over directions
    assert float(balance(found).detach()) == pytest.approx(2, abs=1e-3)
    with torch.no_grad():
        bank.live["router"].copy_(torch.ones(4, WIDTH) * torch.tensor([9.0, 9.0, 0, 0])[:, None])
        one_sided = inputs().abs()
    aux = Aux()
    with using(found, aux=aux):
        found(one_sided)
    assert float(torch.as_tensor(aux.total()).detach()) == pytest.approx(4, abs=1e-2)


def test_the_balance_loss_is_its_formula_and_pulls_on_the_router_alone():
    found = model(top_k=2, balance=0.5)
    (_, bank), *_ = banks_of(found).values()
    loss = balance(found)
    scores = inputs().flatten(0, 1) @ bank.live["router"][0].T
    used = torch.zeros(TOKENS, 4).scatter(1, scores.topk(2).indices, 1.0).mean(0)
    torch.testing.assert_close(loss, 0.5 * 4 * (scores.softmax(-1).mean(0) * used).sum())
    loss.backward()
    assert bank.live["router"].grad is not None and bank.live["router"].grad.norm() > 0
    assert bank.live["A"].grad is None and bank.live["B"].grad is None


def test_padding_does_not_count_in_the_balance():
    found = model(balance=1.0)
    real = torch.zeros(4, TOKENS // 4, dtype=torch.bool)
    real[:, :3] = True
    aux = Aux()
    with using(found, aux=aux):
        found(inputs()[:, :3])
    assert float(balance(found, real).detach()) == pytest.approx(float(torch.as_tensor(aux.total()).detach()), rel=1e-5)


def test_frozen_blocks_cost_no_balance_and_route_without_noise():
    found = model(2, noisy=True, balance=1.0)
    frozen = model(2, noisy=True, balance=1.0)
    grow(frozen, [Change("freeze")], 0)
    assert float(balance(found).detach()) > 0 and float(balance(frozen).detach()) == 0
    x = inputs()
    with torch.no_grad():
        torch.testing.assert_close(frozen.train()(x), frozen.eval()(x), rtol=0, atol=0)
        assert not torch.equal(found.train()(x), found.eval()(x))
        first, second = (found.train()(x) for _ in range(2))
        assert not torch.equal(first, second) and torch.equal(found.eval()(x), found.eval()(x))


def test_noise_of_zero_weights_has_the_spread_of_softplus_at_zero():
    found = model(noisy=True)
    (site, bank), *_ = banks_of(found).values()
    form = adapter_of(found).branch
    assert isinstance(form, Experts)
    x, blocks, layer = randn(5000, WIDTH, key="many"), bank.view(), found.get_submodule("0.base")
    with torch.no_grad():
        torch.manual_seed(0)
        noise = form.scores(x, blocks, site, layer, True) - form.scores(x, blocks, site, layer, False)
    assert float(noise.std()) == pytest.approx(math.log(2), rel=0.02)


def test_the_context_weighs_whole_blocks_for_each_example():
    found, x = model(2), inputs()
    with torch.no_grad():
        with using(found, blocks=("1",)):
            first = found(x)
        with using(found, mix={"1": torch.tensor([1.0, 0, 1, 0]), "2": torch.zeros(4)}):
            mixed = found(x)
        base, both = adapter_free(found, x), found(x)
        torch.testing.assert_close(mixed[[0, 2]], first[[0, 2]], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(mixed[[1, 3]], base[[1, 3]], rtol=0, atol=0)
        with using(found, mix={"1": torch.full((4,), 0.5), "2": torch.full((4,), 0.5)}):
            torch.testing.assert_close(found(x) - base, (both - base) / 2, rtol=1e-4, atol=1e-4)
        with using(found, mix={"1": torch.ones(4)}):  # a block the mixture does not name weighs 1
            torch.testing.assert_close(found(x), both, rtol=1e-6, atol=1e-6)
        with using(found, mix={"1": torch.ones(7)}), pytest.raises(UsageError, match="sees 4 rows.*7 examples"):
            found(x)


def test_experts_stand_on_embeddings_and_convolutions_too():
    ids, image = torch.tensor([[1, 2, 3]]), torch.ones(1, 2, 5, 5)
    for base, x in ((nn.Embedding(9, 6), ids), (nn.Conv2d(2, 6, 3), image)):
        expected = base(x)
        found = adapt(nn.Sequential(base), "moe-lora", rank=2, sites="0")
        assert torch.equal(found(x), expected)
        move(found)
        assert found(x).shape == expected.shape and not torch.allclose(found(x), expected)


def test_every_expert_learns_in_a_run_long_enough():
    found = model(balance=0.01).train()
    (_, bank), *_ = banks_of(found).values()
    before, x = bank.live["B"].detach().clone(), randn(256, WIDTH, key="train")
    target = torch.where(x[:, :1] > 0, x[:, :OUT], -x[:, :OUT])
    rule, aux = torch.optim.Adam(bank.live.parameters(), lr=1e-2), Aux()
    losses = []
    for _ in range(60):
        rule.zero_grad()
        with using(found, aux=aux):
            loss = (found(x) - target).square().mean()
            (loss + aux.total()).backward()
        rule.step()
        losses.append(loss.item())
    moved = (bank.live["B"].detach() - before).abs().sum(0).view(4, RANK).sum(1)
    assert losses[-1] < 0.5 * losses[0] and (moved > 0.1).all()


def test_a_merge_and_an_export_are_refused(tmp_path):
    found = model()
    for leave in (lambda: merge(found), lambda: export(found, tmp_path / "peft")):
        with pytest.raises(UsageError, match="Experts: .*depends on the input.*rankwise.save"):
            leave()


@pytest.mark.parametrize(
    ("form", "said"),
    [
        ({"top_k": 5}, "top_k must be from 1 to"),
        ({"top_k": 0}, "top_k = 0: .*1"),
        ({"balance": -1}, "balance = -1: .*0"),
    ],
)
def test_settings_out_of_range_are_refused(form, said):
    with pytest.raises(UsageError, match=said):
        model(**form)


def test_a_run_learns_and_its_balance_refuses_micro_batches(digits, tmp_path):
    from digit_runs import SMALL

    from rankwise.config import merged

    run = digits("moe-lora")
    assert run.results["method"] == "moe-lora" and len(run.results["matrix"]) == 3
    config = merged(SMALL, {"method": "moe-lora", "train": {"accumulate": 2}})
    with pytest.raises(ConflictError, match="'moe-lora'.*accumulate = 1"):
        rankwise.run(config, out=tmp_path / "run")
