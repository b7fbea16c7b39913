"""Every method on every architecture; the same cells as the table in docs/models.md."""

from __future__ import annotations

import pytest
from loading import benchmark

from rankwise import papers

MATRIX = benchmark("models")


@pytest.mark.parametrize("slug", papers.slugs())
@pytest.mark.parametrize("name", sorted(MATRIX.MODELS))
def test_a_cell(name, slug, tmp_path):
    found = MATRIX.cell(name, papers.method(slug), tmp_path)
    assert found.startswith(("trains", "no adapter", "refused: "))
    assert name != "Llama" or not found.startswith("refused")  # no method is shut out of the commonest architecture
