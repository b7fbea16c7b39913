"""Tensors that lie over the base's own: there while the adapter is, gone when it is taken off."""

from __future__ import annotations

import copy

import pytest
import tiny  # pyright: ignore[reportMissingImports]
import torch
from torch import nn

import rankwise
from rankwise.adapters import bare, detach, lay
from rankwise.adapters.overlay import same_tensor
from rankwise.errors import UsageError
from rankwise.models import fingerprint


class Normed(nn.Module):
    """A layer, a norm with running statistics, and two names for one matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.first = nn.Linear(4, 4, bias=False)
        self.second = nn.Linear(4, 4, bias=False)
        self.second.weight = self.first.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(self.norm(self.layer(x))))


def made() -> nn.Module:
    return tiny.seeded(Normed)


def laid(names: list[str], value: float = 0.5) -> nn.Module:
    model = rankwise.adapt(made(), "lora", rank=2, sites=["layer"])
    own = made().state_dict()
    lay(model, {name: torch.full_like(own[name], value) for name in names})
    return model


X = torch.arange(8.0).view(2, 4)


def test_a_parameter_and_a_buffer_lie_there_until_the_adapter_is_off():
    model = laid(["layer.bias", "norm.running_mean"])
    expected = made()
    with torch.no_grad():
        expected.get_parameter("layer.bias").fill_(0.5)
        expected.get_buffer("norm.running_mean").fill_(0.5)
    assert torch.equal(model(X), expected(X))
    assert [name for name, p in model.named_parameters() if p.requires_grad] == [
        "layer.banks.0.live.A",
        "layer.banks.0.live.B",
    ]
    with bare(model) as base:
        assert fingerprint(base) == fingerprint(made())
    assert torch.equal(model(X), expected(X))
    twin = copy.deepcopy(model)
    assert fingerprint(detach(model)) == fingerprint(made())
    assert torch.equal(twin(X), expected(X))
    assert torch.equal(rankwise.merge(twin)(X), expected(X)) and not torch.equal(expected(X), made()(X))


def test_tied_weights_part_only_where_one_of_them_is_named():
    assert same_tensor(made(), "first.weight") == ["first.weight", "second.weight"]
    alone = laid(["first.weight"])
    assert not torch.equal(alone.get_parameter("second.weight"), alone.get_parameter("first.weight"))
    model = rankwise.adapt(made(), "lora", rank=2, sites=["layer"])
    lay(model, dict.fromkeys(["first.weight", "second.weight"], torch.ones(4, 4)))
    assert model.get_parameter("second.weight") is model.get_parameter("first.weight")
    base = detach(model)
    assert base.get_parameter("second.weight") is base.get_parameter("first.weight")


def test_what_lies_there_follows_the_model():
    model = laid(["layer.bias"]).to(torch.float64)
    assert model(X.double()).dtype == torch.float64
    with bare(model) as base:
        assert {p.dtype for p in base.parameters()} == {torch.float64}


def test_an_unknown_tensor_and_another_shape_are_refused():
    model = laid(["layer.bias"])
    before = model(X)
    with pytest.raises(UsageError, match=r"'layer\.bia' is no tensor of this model; did you mean 'layer\.bias'"):
        lay(model, {"layer.bia": torch.zeros(4)})
    with pytest.raises(UsageError, match=r"'layer\.bias' is \[5\] in the file and \[4\] in this model"):
        lay(model, {"layer.bias": torch.zeros(5)})
    assert torch.equal(model(X), before)
