"""Merging: a plain module with the same outputs, or a refusal that changes nothing."""

from __future__ import annotations

import pytest
import tiny
import torch
from tiny import adapted
from torch import nn

from rankwise.adapters import banks_of, detach, fold, is_adapted
from rankwise.errors import UsageError
from rankwise.papers.mora import SelfActivated


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "vit", "mixed"])
def test_merge_gives_a_plain_module_with_the_same_outputs(name):
    model, batch = adapted(tiny.MODELS[name](), blocks="ab"), tiny.fed(name)
    before = tiny.logits(model, batch)
    fold(model)
    plain = detach(model)
    fresh = tiny.MODELS[name]()
    assert type(plain) is type(fresh)
    assert [(n, type(m)) for n, m in plain.named_modules()] == [(n, type(m)) for n, m in fresh.named_modules()]
    found = tiny.logits(plain, batch)
    assert float((found - before).abs().max() / before.abs().max()) < 1e-5
    assert not torch.allclose(found, tiny.logits(fresh, batch), atol=1e-3)


def test_merge_into_bfloat16_adds_in_float32():
    model = adapted(tiny.mlp().bfloat16())
    expected = {}
    for name, (_, bank) in banks_of(model).items():
        weight = model.get_parameter(f"{name}.base.weight")
        expected[name] = (weight.float() + 0.5 * bank.tensor("B") @ bank.tensor("A")).bfloat16()
    fold(model)
    for name, weight in expected.items():
        assert torch.equal(model.get_parameter(f"{name}.base.weight"), weight)


def test_merge_refuses_tied_weights_and_changes_nothing():
    model = adapted(tiny.gpt2(), ["c_fc", "wte"])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(UsageError, match=r"transformer\.wte.*is shared by transformer\.wte, lm_head"):
        fold(model)
    after = model.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)


def test_merge_refuses_a_gate_that_depends_on_the_input():
    model = adapted(tiny.mlp(), gate=SelfActivated())
    with pytest.raises(UsageError, match="SelfActivated: this gate depends on the input"):
        fold(model)
    assert {bank.labels for _, bank in banks_of(model).values()} == {("a",)}


def test_merge_refuses_an_unknown_block():
    with pytest.raises(UsageError, match="no block 'c' to fold; .*known: a, b"):
        fold(adapted(tiny.mlp(), blocks="ab"), ["a", "c"])


def test_an_integer_weight_is_refused_by_merge():
    model = nn.Sequential(nn.Linear(2, 2))
    model[0].weight = nn.Parameter(torch.ones(2, 2, dtype=torch.int8), requires_grad=False)
    with pytest.raises(UsageError, match=r"torch\.int8; load the base unquantised"):
        fold(adapted(model, awake=False))


def test_an_adapted_model_inside_another_can_be_merged():
    inner, x = adapted(tiny.mlp()), tiny.fed("mlp")["input"]
    outer = nn.Sequential(inner, nn.Linear(3, 2))
    before = outer(x)
    fold(outer)
    detach(outer)
    assert not is_adapted(inner)
    assert torch.allclose(outer(x), before, atol=1e-6)
