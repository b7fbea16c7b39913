"""Every method on every architecture; the same cells as the table in docs/models.md."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from rankwise import papers

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "models.py"


def loaded() -> ModuleType:
    spec = importlib.util.spec_from_file_location("models_matrix", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MATRIX = loaded()


@pytest.mark.parametrize("slug", papers.slugs())
@pytest.mark.parametrize("name", sorted(MATRIX.MODELS))
def test_a_cell(name, slug, tmp_path):
    found = MATRIX.cell(name, papers.method(slug), tmp_path)
    assert found.startswith(("trains", "no adapter", "refused: "))
    assert name != "Llama" or not found.startswith("refused")  # no method is shut out of the commonest architecture
