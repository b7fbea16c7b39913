"""Starts of the down factor: their distribution, and that they are functions of the generator alone."""

from __future__ import annotations

import math

import pytest
import torch

from rankwise.adapters.inits import INITS
from rankwise.adapters.sites import Site


def draw(name: str, rows: int, columns: int) -> torch.Tensor:
    site = Site("0", "0", "linear", columns, 5)
    a, b = INITS[name].factors(site, rows, rng(), lambda: torch.zeros(5, columns), 1.0)
    assert torch.equal(b, torch.zeros(5, rows))
    return a


def rng() -> torch.Generator:
    return torch.Generator().manual_seed(3)


@pytest.mark.parametrize("name", sorted(INITS))
@pytest.mark.parametrize("shape", [(4, 9), (9, 4), (1, 5)])
def test_a_start_is_a_function_of_its_generator(name, shape):
    torch.manual_seed(0)
    first = draw(name, *shape)
    torch.manual_seed(1)
    assert torch.equal(first, draw(name, *shape))
    assert first.shape == shape and first.dtype == torch.float32 and first.abs().sum() > 0


def test_kaiming_is_torchs_default_for_a_linear_layer():
    drawn = draw("kaiming", 400, 25)
    assert drawn.abs().max() <= 0.2
    assert math.isclose(float(drawn.std()), 0.2 / math.sqrt(3), rel_tol=0.03)


def test_gaussian_has_pefts_deviation():
    assert math.isclose(float(draw("gaussian", 8, 4000).std()), 1 / 8, rel_tol=0.03)


@pytest.mark.parametrize("shape", [(3, 7), (7, 3)])
def test_orthogonal_frames(shape):
    frame = draw("orthogonal", *shape)
    small = frame @ frame.T if shape[0] < shape[1] else frame.T @ frame
    assert torch.allclose(small, torch.eye(3), atol=1e-6)
