"""The fingerprint, the poolings and the Backbone itself, on hand-made states."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from rankwise.errors import DataError, UsageError
from rankwise.models import base


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def test_fingerprint_sees_values_names_dtypes_and_buffers():
    first = base.fingerprint(small())
    assert first == base.fingerprint(small())
    altered = small()
    altered[1].running_mean[2] += 1e-6
    others = [altered, nn.Sequential(*small(), nn.Identity()), small().double(), nn.ModuleDict({"a": small()})]
    prints = [base.fingerprint(module) for module in others]
    assert prints[1] == first  # a part without weights changes nothing
    assert len({first, prints[0], prints[2], prints[3]}) == 4


def test_fingerprint_tells_shapes_of_equal_bytes_apart():
    flat, square = nn.ParameterDict({"w": torch.zeros(4)}), nn.ParameterDict({"w": torch.zeros(2, 2)})
    assert base.fingerprint(flat) != base.fingerprint(square)


def test_poolings_on_known_states():
    states = torch.arange(12.0).view(1, 4, 3)
    output = SimpleNamespace(last_hidden_state=states, pooler_output=torch.ones(1, 3))
    mask = torch.tensor([[1, 1, 0, 0]])
    assert base.mean_of_tokens(output, mask).tolist() == [[1.5, 2.5, 3.5]]
    assert base.mean_of_tokens(output, None).tolist() == [[4.5, 5.5, 6.5]]
    assert base.last_token(output, mask).tolist() == [[3.0, 4.0, 5.0]]
    assert base.last_token(output, torch.tensor([[0, 0, 1, 1]])).tolist() == [[9.0, 10.0, 11.0]]
    assert base.first_token(output, mask).tolist() == [[0.0, 1.0, 2.0]]
    assert base.patches(output, None).tolist() == [[6.0, 7.0, 8.0]]
    assert base.class_and_patches(output, None).tolist() == [[6.0, 8.0, 10.0]]
    assert base.pooled(output, None).tolist() == [[1.0, 1.0, 1.0]]


def test_everywhere_takes_tokens_and_feature_maps():
    tokens = SimpleNamespace(last_hidden_state=torch.arange(6.0).view(1, 3, 2))
    places = SimpleNamespace(last_hidden_state=torch.arange(8.0).view(1, 2, 2, 2))
    assert base.everywhere(tokens, None).tolist() == [[2.0, 3.0]]
    assert base.everywhere(places, None).tolist() == [[1.5, 5.5]]


def test_unknown_pooling_names_the_nearest():
    with pytest.raises(UsageError, match="did you mean 'last'"):
        base.pool_named("lst", "text", base.mean_of_tokens)
    with pytest.raises(UsageError, match="image"):
        base.pool_named("last", "image", base.patches)


def test_freeze_refuses_a_weight_that_is_not_finite():
    module = small()
    base.freeze(module, "here")
    assert not module.training and not any(p.requires_grad for p in module.parameters())
    with torch.no_grad():
        module[0].weight[0, 0] = float("nan")
    with pytest.raises(DataError, match=r"here: weight '0\.weight'"):
        base.freeze(module, "here")


def test_features_pass_only_what_the_module_takes():
    class Echo(nn.Module):
        def forward(self, pixel_values):
            return SimpleNamespace(last_hidden_state=pixel_values.half())

    backbone = base.Backbone(
        "echo", Echo(), "image", 2, "", lambda x: {"pixel_values": x}, base.first_token, ("pixel_values",)
    )
    batch = {**backbone.encode(torch.ones(5, 3, 2)), "labels": torch.zeros(5), "ids": torch.zeros(5)}
    features = backbone.features(batch)
    assert features.shape == (5, 2) and features.dtype == torch.float32
    with pytest.raises(DataError, match="labels"):
        backbone.features({"labels": torch.zeros(5)})
