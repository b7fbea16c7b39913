"""Starts of the down factor: their distribution, and that they are functions of the generator alone."""

from __future__ import annotations

import math

import pytest
import torch

from rankwise.adapters.inits import INITS, init_named, zeros
from rankwise.errors import UsageError


def rng() -> torch.Generator:
    return torch.Generator().manual_seed(3)


@pytest.mark.parametrize("name", sorted(INITS))
@pytest.mark.parametrize("shape", [(4, 9), (9, 4), (1, 5)])
def test_a_start_is_a_function_of_its_generator(name, shape):
    torch.manual_seed(0)
    first = init_named(name)(shape[0], shape[1], rng())
    torch.manual_seed(1)
    assert torch.equal(first, init_named(name)(shape[0], shape[1], rng()))
    assert first.shape == shape and first.dtype == torch.float32 and first.abs().sum() > 0


def test_kaiming_is_torchs_default_for_a_linear_layer():
    drawn = INITS["kaiming"](400, 25, rng())
    assert drawn.abs().max() <= 0.2
    assert math.isclose(float(drawn.std()), 0.2 / math.sqrt(3), rel_tol=0.03)


def test_gaussian_has_pefts_deviation():
    assert math.isclose(float(INITS["gaussian"](8, 4000, rng()).std()), 1 / 8, rel_tol=0.03)


@pytest.mark.parametrize("shape", [(3, 7), (7, 3)])
def test_orthogonal_frames(shape):
    frame = INITS["orthogonal"](shape[0], shape[1], rng())
    small = frame @ frame.T if shape[0] < shape[1] else frame.T @ frame
    assert torch.allclose(small, torch.eye(3), atol=1e-6)


def test_zeros_and_unknown_names():
    assert torch.equal(zeros(2, 3, rng()), torch.zeros(2, 3))
    with pytest.raises(UsageError, match="did you mean 'kaiming'"):
        init_named("kaimin")
