"""PiSSA: what the block takes at the start, what is left in the base, and the plain LoRA it leaves as."""

from __future__ import annotations

import pytest
import torch
from pools import randn
from torch import nn

from rankwise.adapters import Change, banks_of, bare, grow
from rankwise.api import adapt, export, load, merge, save
from rankwise.errors import StorageError, UsageError
from rankwise.models import fingerprint

WIDTH, OUT, RANK = 20, 14, 4


def model() -> nn.Sequential:
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(WIDTH, OUT), nn.Tanh(), nn.Linear(OUT, 6))


def train(adapted: nn.Module, steps: int = 5) -> None:
    rule = torch.optim.Adam([p for p in adapted.parameters() if p.requires_grad], 1e-2)
    for _ in range(steps):
        rule.zero_grad()
        (adapted(randn(8, WIDTH, key="x")) - 1).square().mean().backward()
        rule.step()


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_the_base_is_left_with_the_small_singular_values(scale):
    plain = model()
    s = torch.linalg.svdvals(plain.get_parameter("0.weight").detach())
    adapted = adapt(plain, "pissa", rank=RANK, scale=scale)
    left = torch.linalg.svdvals(adapted.get_parameter("0.base.weight").detach())
    assert float(left.square().sum()) == pytest.approx(float(s[RANK:].square().sum()), rel=1e-4)
    torch.testing.assert_close(left[: OUT - RANK], s[RANK:], rtol=1e-4, atol=1e-5)


def test_the_singular_values_are_shared_evenly_between_both_factors():
    plain = model()
    s = torch.linalg.svdvals(plain.get_parameter("0.weight").detach())[:RANK]
    (_, bank), *_ = banks_of(adapt(plain, "pissa", rank=RANK)).values()
    a, b = bank.live["A"].detach(), bank.live["B"].detach()
    torch.testing.assert_close(a @ a.T, torch.diag(s), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(b.T @ b, torch.diag(s), rtol=1e-4, atol=1e-5)


def test_the_model_computes_what_it_did_and_both_factors_learn():
    x = randn(9, WIDTH, key="t")
    before, adapted = model()(x), adapt(model(), "pissa", rank=RANK)
    torch.testing.assert_close(adapted(x), before, rtol=0, atol=1e-5)
    adapted(x).square().mean().backward()
    (_, bank), *_ = banks_of(adapted).values()
    assert all(bank.live[name].grad.norm() > 0 for name in ("A", "B"))


def test_it_leaves_for_peft_as_a_lora_of_twice_its_rank_on_the_untouched_base(tmp_path):
    adapted, x = adapt(model(), "pissa", rank=2), randn(9, WIDTH, key="t")
    train(adapted)
    export(adapted, tmp_path / "peft")
    back = load(model(), tmp_path / "peft")
    assert [bank.size for _, bank in banks_of(back).values()] == [4, 4]
    torch.testing.assert_close(back(x), adapted(x), rtol=0, atol=1e-5)


def test_it_is_saved_beside_the_untouched_base(tmp_path):
    adapted, x = adapt(model(), "pissa", rank=RANK), randn(9, WIDTH, key="t")
    train(adapted)
    save(adapted, tmp_path / "adapter")
    back = load(model(), tmp_path / "adapter")
    assert torch.equal(back(x), adapted(x))
    with bare(adapted) as base, pytest.raises(StorageError, match="fingerprint"):
        assert fingerprint(base) != fingerprint(model())
        load(base, tmp_path / "adapter")
    torch.testing.assert_close(merge(adapted)(x), back(x), rtol=0, atol=1e-5)


def test_a_second_block_takes_the_strongest_directions_that_are_left():
    adapted = adapt(model(), "pissa", rank=RANK)
    s = torch.linalg.svdvals(model().get_parameter("0.weight").detach())
    grow(adapted, [Change("freeze"), Change("append", "2", RANK)], 0)
    (_, bank), *_ = banks_of(adapted).values()
    a = bank.live["A"].detach()
    torch.testing.assert_close((a @ a.T).diagonal(), s[RANK : 2 * RANK], rtol=1e-4, atol=1e-5)


def test_any_method_may_start_so():
    adapted, x = adapt(model(), "lora", rank=RANK, init="pissa"), randn(9, WIDTH, key="t")
    torch.testing.assert_close(adapted(x), model()(x), rtol=0, atol=1e-5)
    assert all(bank.live["B"].norm() > 0 for _, bank in banks_of(adapted).values())


def test_more_ranks_than_singular_values_are_refused():
    with pytest.raises(UsageError, match=r"'0': rank 15 of a weight with 14 singular values; lower the rank"):
        adapt(model(), "pissa", rank=15)
