"""An adapted model: switched off, taken off, merged, copied, cast, checkpointed; and the guard on its context."""

from __future__ import annotations

import copy
import gc
import warnings
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rankwise.adapters import (
    Change,
    Identity,
    Pair,
    adapter_of,
    attach,
    banks_of,
    bare,
    detach,
    fold,
    grow,
    is_adapted,
    pick_sites,
    using,
)
from rankwise.errors import ConflictError, RankwiseError, UsageError
from rankwise.papers.mora import SelfActivated


def adapted(model: nn.Module, sites: Any = "all-linear", gate=None, blocks: str = "a", awake: bool = True) -> nn.Module:
    attach(model, pick_sites(model, sites), Pair(gate or Identity(), 0.5), {"method": "lora"})
    for label in blocks:
        grow(model, [Change("freeze"), Change("append", label, 2)], 0)
    if awake:
        tiny.wake(model)
    return model


def live(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def gradients(model: nn.Module) -> list[Tensor]:
    found = [p.grad for p in live(model).values()]
    assert all(gradient is not None for gradient in found)
    return [gradient for gradient in found if gradient is not None]


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


# Merging.


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


# What a base may be.


class Sealed(nn.Linear):
    """A quantised base, as far as its user can tell: it can be called, and nobody may look at its weight."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__(n_in, n_out, bias=False)
        codes = torch.randint(-8, 8, (n_out, n_in), generator=torch.Generator().manual_seed(n_in))
        del self._parameters["weight"]
        self.register_buffer("codes", codes.to(torch.int8))

    def __getattr__(self, name: str):
        if name == "weight" and "codes" in self._buffers:
            raise RuntimeError("the weight was read")
        return super().__getattr__(name)

    def forward(self, input: Tensor) -> Tensor:
        return input @ (self.get_buffer("codes").to(input.dtype) * 0.1).T


def test_a_quantised_base_trains_because_it_is_only_called():
    model = adapted(nn.Sequential(Sealed(4, 6), nn.Tanh(), Sealed(6, 2)), awake=False)
    x, target = torch.randn(32, 4, generator=torch.Generator().manual_seed(0)), torch.ones(32, 2)
    optimizer, losses = torch.optim.Adam(live(model).values(), lr=0.05), []
    for _ in range(40):
        loss = nn.functional.mse_loss(model(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]
    with pytest.raises(UsageError, match="load the base unquantised"):
        fold(model)
    detach(model)
    assert isinstance(model.get_submodule("0"), Sealed)


def test_an_integer_weight_is_refused_by_merge():
    model = nn.Sequential(nn.Linear(2, 2))
    model[0].weight = nn.Parameter(torch.ones(2, 2, dtype=torch.int8), requires_grad=False)
    with pytest.raises(UsageError, match=r"torch\.int8; load the base unquantised"):
        fold(adapted(model, awake=False))


class Asking(nn.Module):
    """As T5 does: looks at a projection's weight and sizes before it calls it."""

    def __init__(self) -> None:
        super().__init__()
        self.wo = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.wo(x.to(self.wo.weight.dtype)) * self.wo.out_features


def test_what_the_model_asks_of_a_module_is_answered_by_its_base():
    model = adapted(tiny.seeded(Asking))
    assert model(torch.ones(1, 3, dtype=torch.float64)).dtype == torch.float32
    with pytest.raises(AttributeError, match="nothing"):
        model.get_submodule("wo").nothing  # noqa: B018


@pytest.mark.parametrize("grad", [False, True])
def test_torchs_fused_layers_do_not_pass_the_adapter_by(grad):
    model = tiny.seeded(lambda: nn.TransformerEncoderLayer(8, 2, 12, batch_first=True))
    x = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0))
    with torch.set_grad_enabled(grad):
        before = model(x)
        assert not torch.allclose(adapted(model)(x), before, atol=1e-3)


def test_a_base_in_bfloat16_takes_a_float32_adapter():
    model, batch = adapted(tiny.llama().bfloat16()), tiny.fed("llama")
    assert {p.dtype for p in live(model).values()} == {torch.float32}
    out = tiny.forward(model, batch)
    assert out.dtype == torch.bfloat16
    out.float().square().mean().backward()
    assert all(g.dtype == torch.float32 and bool(g.isfinite().all()) and g.abs().sum() > 0 for g in gradients(model))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_to_casts_blocks_with_the_base_and_later_blocks_follow(dtype):
    model = adapted(tiny.mlp(), blocks="ab").to(dtype)
    tensors = [t for _, bank in banks_of(model).values() for t in (*bank.parameters(), *bank.buffers())]
    assert {t.dtype for t in tensors} == {dtype}
    grow(model, [Change("freeze"), Change("append", "c", 1)], 0)
    assert model(torch.ones(2, 5, dtype=dtype)).dtype == dtype


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


def test_an_adapted_model_inside_another_can_be_merged():
    inner, x = adapted(tiny.mlp()), tiny.fed("mlp")["input"]
    outer = nn.Sequential(inner, nn.Linear(3, 2))
    before = outer(x)
    fold(outer)
    detach(outer)
    assert not is_adapted(inner)
    assert torch.allclose(outer(x), before, atol=1e-6)


# Activation checkpointing and the guard.


class Checkpointed(nn.Module):
    """Runs each of its layers again in the backward; `wide`: all of them in one stretch."""

    def __init__(self, body: nn.Module, wide: bool) -> None:
        super().__init__()
        self.body, self.wide = body, wide

    def forward(self, x: Tensor) -> Tensor:
        for part in [self.body] if self.wide else self.body.children():
            x = checkpoint(part, x, use_reentrant=False)  # pyright: ignore[reportAssignmentType]
        return x


@pytest.mark.parametrize("gate", [None, SelfActivated(top_k=2, temperature=0.5)])
@pytest.mark.parametrize("wide", [False, True])
def test_checkpointing_leaves_the_gradients_as_they_are(gate, wide):
    model, x = adapted(tiny.mlp(5, 8, 8, 3), gate=gate, blocks="ab"), tiny.fed("mlp")["input"]
    with using(model, blocks=("b",)):
        model(x).square().sum().backward()
    expected = [gradient.clone() for gradient in gradients(model)]
    model.zero_grad()
    with using(model, blocks=("b",)):
        Checkpointed(model, wide)(x).square().sum().backward()
    assert all(torch.equal(a, b) for a, b in zip(gradients(model), expected, strict=True))


def test_checkpointing_of_a_transformers_model():
    model, batch = adapted(tiny.llama().train()), tiny.fed("llama")
    tiny.forward(model, batch).square().mean().backward()
    expected = [gradient.clone() for gradient in gradients(model)]
    model.zero_grad()
    with warnings.catch_warnings(action="ignore"):  # the new name is not in every version that is supported
        model.gradient_checkpointing_enable({"use_reentrant": False})  # pyright: ignore[reportCallIssue]
    tiny.forward(model, batch).square().mean().backward()
    assert all(torch.equal(a, b) for a, b in zip(gradients(model), expected, strict=True))


def strict(model: nn.Module) -> nn.Module:
    adapter_of(model).strict = True
    return model


def test_two_contexts_before_a_backward_are_an_error_in_strict_mode():
    model, x = strict(adapted(tiny.mlp(), blocks="ab")), tiny.fed("mlp")["input"]
    with pytest.raises(RankwiseError, match="still waits for its backward"), using(model, blocks=("b",)):
        held = model(x)
        with using(model, blocks=("a", "b")):
            held = held + model(x)
    assert adapter_of(model).context.blocks is None


def test_leaving_the_context_before_the_backward_is_an_error_in_strict_mode():
    model, x = strict(adapted(tiny.mlp())), tiny.fed("mlp")["input"]
    with pytest.raises(RankwiseError, match="still waits"), using(model, blocks=("a",)):
        model(x).sum().backward()
        held = [model(x)]
    adapter_of(model).strict = False
    with using(model, blocks=("a",)):
        held = model(x)
    held.sum().backward()


@pytest.mark.parametrize("wide", [None, False, True])
@pytest.mark.parametrize("rounds", [1, 3])
def test_a_right_order_never_raises(wide, rounds):
    model, x = strict(adapted(tiny.mlp(5, 6, 6, 3), blocks="ab")), tiny.fed("mlp")["input"]
    run = model if wide is None else Checkpointed(model, wide)
    gc.disable()
    try:
        for _ in range(rounds):
            for blocks in (("a", "b"), ("b",)):
                with using(model, blocks=blocks):
                    loss = run(x).square().sum()
                    loss.backward()
                with torch.no_grad(), using(model, blocks=()):
                    run(x)
    finally:
        gc.enable()
    assert not adapter_of(model).waiting


def test_a_forward_that_is_dropped_owes_nothing():
    model, x = strict(adapted(tiny.mlp())), tiny.fed("mlp")["input"]
    with using(model, blocks=("a",)):
        held = model(x)
        assert adapter_of(model).waiting
        del held
        assert not adapter_of(model).waiting


def test_a_site_that_the_loss_does_not_reach_does_not_block():
    model, x = strict(adapted(nn.ModuleDict({"a": nn.Linear(3, 2), "b": nn.Linear(3, 2)}))), torch.ones(1, 3)
    assert isinstance(model, nn.ModuleDict)
    with using(model, blocks=("a",)):
        outs = [model[name](x) for name in "ab"]
        outs[1].sum().backward()
    assert not adapter_of(model).waiting and len(outs) == 2


def test_the_same_context_again_is_no_change():
    model, x = strict(adapted(tiny.mlp())), tiny.fed("mlp")["input"]
    with using(model, blocks=("a",)):
        loss = model(x).sum()
        with using(model, blocks=("a",)):
            loss = loss + model(x).sum()
        loss.backward()
    assert not adapter_of(model).waiting
