"""A weight's decomposition: right, the same on every call, and taken from the disk where it lies there."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rankwise.adapters.spectrum import spectrum, truncated
from rankwise.errors import RankwiseError, StorageError, UsageError
from rankwise.seeds import generator


def drawn(rows: int, columns: int, key: str = "w") -> Tensor:
    return torch.randn(rows, columns, generator=generator(0, key, rows, columns))


@pytest.mark.parametrize("shape", [(8, 8), (30, 12), (12, 30), (1, 5)])
def test_it_gives_the_weight_back_with_orthonormal_factors(shape):
    weight = drawn(*shape)
    found = spectrum(weight)
    assert ((found.u * found.s @ found.vh) - weight).norm() < 1e-5 * weight.norm()
    for square in (found.u.T @ found.u, found.vh @ found.vh.T):
        torch.testing.assert_close(square, torch.eye(min(shape)), rtol=0, atol=1e-5)
    assert bool((found.s[:-1] >= found.s[1:]).all())


def test_signs_are_settled():
    found, turned = spectrum(drawn(9, 6)), spectrum(-drawn(9, 6))
    largest = found.u.gather(0, found.u.abs().argmax(0, keepdim=True))
    assert bool((largest > 0).all())
    torch.testing.assert_close(turned.u, found.u, rtol=0, atol=1e-5)
    torch.testing.assert_close(turned.vh, -found.vh, rtol=0, atol=1e-5)


def test_the_cache_is_read_instead_of_computing(tmp_path, monkeypatch):
    first = spectrum(drawn(9, 6), str(tmp_path / "svd"))
    spectrum(drawn(9, 6, "other"), str(tmp_path / "svd"))
    assert len(list((tmp_path / "svd").iterdir())) == 2
    monkeypatch.setattr(torch.linalg, "svd", None)
    again = spectrum(drawn(9, 6), str(tmp_path / "svd"))
    assert all(
        torch.equal(again_, first_) for again_, first_ in zip(vars(again).values(), vars(first).values(), strict=True)
    )


def test_a_damaged_cache_is_named(tmp_path):
    spectrum(drawn(9, 6), str(tmp_path))
    spectrum(drawn(9, 6, "other"), str(tmp_path))
    one, two = sorted(tmp_path.iterdir())
    one.write_bytes(two.read_bytes())
    both = [drawn(9, 6), drawn(9, 6, "other")]
    with pytest.raises(StorageError, match="gives another weight.*delete it"):
        [spectrum(weight, str(tmp_path)) for weight in both]
    one.write_bytes(two.read_bytes()[:-9])
    with pytest.raises(RankwiseError, match=one.name):
        [spectrum(weight, str(tmp_path)) for weight in both]


def test_a_weight_that_is_not_finite_is_refused():
    with pytest.raises(UsageError, match="not finite"):
        spectrum(torch.tensor([[1.0, float("nan")]]))


def test_the_first_terms_are_the_best_approximation_and_no_more_than_there_are():
    weight = drawn(9, 6)
    few = truncated(weight, 2, "here")
    left = weight - few.u * few.s @ few.vh
    assert float(left.square().sum()) == pytest.approx(float(spectrum(weight).s[2:].square().sum()), rel=1e-4)
    with pytest.raises(UsageError, match="'here': rank 7 of a weight with 6"):
        truncated(weight, 7, "here")
