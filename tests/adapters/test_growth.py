"""Changes of structure: what each does, where, and what is refused before anything has moved."""

from __future__ import annotations

import pytest
import tiny
import torch
from torch import Tensor, nn

from rankwise.adapters import Change, Identity, Pair, attach, banks_of, grow, pick_sites
from rankwise.errors import UsageError


def empty(name: str = "mlp", sites="all-linear") -> nn.Module:
    model = tiny.MODELS[name]()
    attach(model, pick_sites(model, sites), Pair(Identity(), 0.6), {})
    return model


def grown(*changes: Change, seed: int = 0, name: str = "mlp", sites="all-linear") -> nn.Module:
    model = empty(name, sites)
    grow(model, changes, seed)
    return model


def start(model: nn.Module, site: str, label: str) -> Tensor:
    return banks_of(model)[site][1].view([label])["A"]


def relative(found: Tensor, expected: Tensor) -> float:
    return float(((found - expected).abs().max() / expected.abs().max()).detach())


def test_append_freeze_select_and_drop_at_every_site():
    model = grown(Change("append", "a", 2), Change("freeze"), Change("append", "b", 3))
    assert {bank.labels for _, bank in banks_of(model).values()} == {("a", "b")}
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 3 * (5 + 7) + 3 * (7 + 3)
    grow(model, [Change("select", index=(1, 2, 4))], 0)
    assert [[(b.label, b.size, b.live) for b in bank.blocks] for _, bank in banks_of(model).values()] == [
        [("a", 1, False), ("b", 2, True)]
    ] * 2
    grow(model, [Change("drop", "a")], 0)
    assert {bank.labels for _, bank in banks_of(model).values()} == {("b",)}


def test_a_change_at_one_site_leaves_the_others():
    model = grown(Change("append", "a", 2), Change("append", "b", 1, site="2"))
    assert [bank.labels for _, bank in banks_of(model).values()] == [("a",), ("a", "b")]
    tiny.wake(model)
    before = tiny.mlp().get_parameter("0.weight")
    grow(model, [Change("fold", "a", site="2")], 0)
    assert [bank.labels for _, bank in banks_of(model).values()] == [("a",), ("b",)]
    assert torch.equal(model.get_parameter("0.base.weight"), before)


def test_starts_do_not_depend_on_the_order_of_anything():
    first = grown(Change("append", "a", 2), Change("append", "b", 2))
    second = grown(Change("append", "b", 2), Change("append", "a", 2))
    third = grown(Change("append", "b", 2, site="2"))
    for site in ("0", "2"):
        for label in "ab":
            assert torch.equal(start(first, site, label), start(second, site, label))
    assert torch.equal(start(first, "2", "b"), start(third, "2", "b"))
    torch.manual_seed(99)
    again = grown(Change("append", "a", 2))
    assert torch.equal(start(first, "0", "a"), start(again, "0", "a"))


def test_starts_differ_by_seed_label_and_site():
    model = grown(Change("append", "a", 2), Change("append", "b", 2), name="llama")
    q, k = "model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj"
    drawn = [start(model, q, "a"), start(model, q, "b"), start(model, k, "a")]
    drawn.append(start(grown(Change("append", "a", 2), seed=1, name="llama"), q, "a"))
    assert all(not torch.equal(x, y) for i, x in enumerate(drawn) for y in drawn[:i])


@pytest.mark.parametrize(
    ("name", "sites"),
    [
        ("mlp", "all-linear"),
        ("gpt2", "all-linear"),
        ("gpt2", ["c_attn.k", "c_fc"]),
        ("mixed", "words"),
        ("mixed", "conv"),
        ("mixed", ["words", "conv", "fc"]),
        ("vit", ["all-linear", "projection"][1:]),
    ],
)
def test_fold_puts_into_the_weight_what_the_block_computed(name, sites):
    model, batch = grown(Change("append", "a", 2), Change("append", "b", 1), name=name, sites=sites), tiny.fed(name)
    tiny.wake(model)
    before, base = tiny.logits(model, batch), tiny.logits(tiny.MODELS[name](), batch)
    assert relative(base, before) > 1e-3
    grow(model, [Change("fold", "b")], 0)
    assert {bank.labels for _, bank in banks_of(model).values()} == {("a",)}
    assert relative(tiny.logits(model, batch), before) < 1e-5
    grow(model, [Change("fold", "a")], 0)
    assert relative(tiny.logits(model, batch), before) < 1e-5
    assert not [p for p in model.parameters() if p.requires_grad]


def test_fold_of_one_after_the_other_equals_fold_of_both():
    changes = [Change("append", "a", 2), Change("append", "b", 1)]
    both, one = grown(*changes), grown(*changes)
    for model in (both, one):
        tiny.wake(model)
    grow(both, [Change("fold", "a"), Change("fold", "b")], 0)
    grow(one, [Change("fold", "b"), Change("fold", "a")], 0)
    for path in ("0.base.weight", "2.base.weight"):
        assert torch.allclose(both.get_parameter(path), one.get_parameter(path), atol=1e-6)


def test_fold_keeps_the_precision_of_the_base():
    model = grown(Change("append", "a", 2)).double()
    tiny.wake(model)
    x = tiny.fed("mlp")["input"].double()
    before = model(x)
    grow(model, [Change("fold", "a")], 0)
    assert relative(model(x), before) < 1e-14


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (Change("apend", "b", 2), "did you mean 'append'"),
        (Change("append", "b", 0), "at least one rank"),
        (Change("append", "b", -1), "at least one rank"),
        (Change("append", "a", 2), "'a' exists already"),
        (Change("append", "b", 2, site="1"), "no site '1'"),
        (Change("fold", "a", site="9"), "no site '9'"),
        (Change("fold", "c"), "no block 'c' to fold"),
        (Change("drop", "c"), "no block 'c'"),
        (Change("select", index=(0, 2)), "position 2"),
    ],
)
def test_what_cannot_be_done_is_refused(change, message):
    model = grown(Change("append", "a", 2))
    with pytest.raises(UsageError, match=message):
        grow(model, [change], 0)
    assert {bank.labels for _, bank in banks_of(model).values()} == {("a",)}


def test_a_wrong_change_is_found_before_the_first_is_made():
    model = grown(Change("append", "a", 2))
    with pytest.raises(UsageError):
        grow(model, [Change("drop", "a"), Change("explode")], 0)
    assert {bank.labels for _, bank in banks_of(model).values()} == {("a",)}


def test_growing_needs_an_adapter():
    with pytest.raises(UsageError, match=r"call rankwise\.adapt"):
        grow(tiny.mlp(), [Change("fold", "a")], 0)
