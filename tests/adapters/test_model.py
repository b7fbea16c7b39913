"""An adapted model: what learns in it, switched off, taken off, copied and saved; and what holds in a context."""

from __future__ import annotations

import copy

import pytest
import tiny
import torch
from tiny import adapted, live
from torch import Tensor, nn

from rankwise.adapters import Change, adapter_of, banks_of, bare, detach, fold, grow, is_adapted, using
from rankwise.errors import ConflictError, UsageError


def test_only_the_live_blocks_learn():
    model = adapted(tiny.llama(), blocks="ab")
    assert all(".live." in name for name in live(model))
    assert len(live(model)) == 2 * 14
    base = {n: p.clone() for n, p in model.named_parameters() if ".base." in n}
    frozen = {n: b.clone() for n, b in model.named_buffers()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    tiny.forward(model, tiny.fed("llama")).square().mean().backward()
    optimizer.step()
    assert all(torch.equal(model.get_parameter(n), p) for n, p in base.items())
    assert all(torch.equal(model.get_buffer(n), b) for n, b in frozen.items())


@pytest.mark.parametrize("name", ["llama", "gpt2", "vit", "mixed"])
def test_no_blocks_is_the_bare_base(name):
    model, batch = adapted(tiny.MODELS[name]()), tiny.fed(name)
    with using(model, blocks=()):
        assert torch.equal(tiny.logits(model, batch), tiny.logits(tiny.MODELS[name](), batch))


def test_contexts_nest_and_come_back():
    model, x = adapted(tiny.mlp(), blocks="ab"), tiny.fed("mlp")["input"]
    whole = model(x)
    with using(model, blocks=("a",)) as outer:
        one, tokens = model(x), torch.ones(2, 2, dtype=torch.bool)
        with using(model, tokens=tokens) as inner:
            assert inner.blocks == ("a",) and inner.tokens is tokens
            with pytest.raises(KeyError), using(model, blocks=()):
                raise KeyError
            assert torch.equal(model(x), one)
        assert adapter_of(model).context is outer
    assert torch.equal(model(x), whole) and not torch.equal(one, whole)
    with using(tiny.mlp(), blocks=()) as context:
        assert context.blocks == ()


def test_detach_restores_the_very_same_modules():
    model = tiny.gpt2()
    before, mode = dict(model.named_modules()), {n: m.training for n, m in model.named_modules()}
    adapted(model)
    assert is_adapted(model)
    assert detach(model) is model and not is_adapted(model)
    after = dict(model.named_modules())
    assert list(after) == list(before) and all(after[name] is before[name] for name in before)
    assert {n: m.training for n, m in model.named_modules()} == mode


def test_bare_shows_the_base_and_comes_back_even_after_an_exception():
    model, x = adapted(tiny.mlp()), tiny.fed("mlp")["input"]
    before, modules = model(x), list(model.modules())
    with pytest.raises(ZeroDivisionError), bare(model) as base:
        assert base is model and list(base.state_dict()) == list(tiny.mlp().state_dict())
        assert torch.equal(model(x), tiny.mlp()(x))
        _ = 1 / 0
    assert list(model.modules()) == modules
    assert torch.equal(model(x), before)


def test_the_training_mode_is_the_models_own():
    model = adapted(tiny.mlp().train())
    assert all(module.training for module in model.modules())
    model.eval()
    detach(model)
    assert not any(module.training for module in model.modules())


def test_a_second_adapter_and_a_bare_layer_are_refused():
    model = adapted(tiny.mlp())
    with pytest.raises(ConflictError, match="carries an adapter already"):
        adapted(model, "base")
    layer = nn.Linear(2, 2)
    with pytest.raises(UsageError, match="wrap it"):
        adapted(layer)
    assert layer.weight.requires_grad
    with pytest.raises(UsageError, match="carries no adapter"):
        adapter_of(tiny.mlp())


class Shared(nn.Module):
    """One layer that stands in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = self.first

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).tanh())


def test_a_module_in_two_places_is_adapted_in_both():
    model = tiny.seeded(Shared)
    assert isinstance(model, Shared)
    layer = model.first
    adapted(model)
    assert model.first is model.second and model.first is not layer
    x = torch.ones(1, 4)
    before = model(x)
    fold(model)
    detach(model)
    assert model.first is layer and model.second is layer
    assert torch.allclose(model(x), before, atol=1e-6)


# Copies and states.


def test_deepcopy_is_a_model_of_its_own():
    model, x = adapted(tiny.mlp(), blocks="ab"), tiny.fed("mlp")["input"]
    model(x).sum().backward()
    other = copy.deepcopy(model)
    assert torch.equal(other(x), model(x))
    assert adapter_of(other) is not adapter_of(model)
    assert len({id(module.adapter) for module in other.modules() if type(module).__name__ == "Adapted"}) == 1
    with using(other, blocks=()):
        assert not torch.equal(other(x), model(x))
    grow(other, [Change("drop", "a")], 0)
    assert {bank.labels for _, bank in banks_of(model).values()} == {("a", "b")}


class Copying(nn.Linear):
    """As quantised layers do: it has a way of its own to be copied."""

    def __deepcopy__(self, memo: dict) -> nn.Module:
        other = Copying(self.in_features, self.out_features)
        other.load_state_dict(self.state_dict())
        return other


def test_a_base_that_copies_itself_does_not_lose_its_adapter():
    model = adapted(nn.Sequential(Copying(3, 2)))
    assert torch.equal(copy.deepcopy(model)(torch.ones(1, 3)), model(torch.ones(1, 3)))


def test_state_dict_goes_into_a_model_of_the_same_blocks():
    model, other = adapted(tiny.llama(), blocks="ab"), adapted(tiny.llama(), blocks="ab", awake=False)
    batch = tiny.fed("llama")
    assert not torch.equal(tiny.logits(model, batch), tiny.logits(other, batch))
    assert set(live(model)) < set(model.state_dict())
    other.load_state_dict(model.state_dict())
    assert torch.equal(tiny.logits(model, batch), tiny.logits(other, batch))
