"""Activation checkpointing, and the guard on the context of a forward."""

from __future__ import annotations

import gc
import warnings

import pytest
import tiny
import torch
from tiny import adapted, gradients
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rankwise.adapters import adapter_of, using
from rankwise.errors import RankwiseError
from rankwise.papers.mora import SelfActivated


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
