"""Rows that lie in no file of ours: saved data sets, the hub, tables of Python."""

from __future__ import annotations

import datasets
import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from sample_rows import LABELS, PIXELS, TEXTS, columns, png

from rankwise.errors import DataError
from rankwise.streams.sources import parts, read


def data_set():
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    return datasets.Dataset.from_dict({"text": TEXTS, "label": [0, 1, 1, 0]}, features=features)


def test_saved_data_sets(tmp_path):
    data_set().save_to_disk(str(tmp_path / "one"))
    rows = read("one", root=tmp_path)
    assert rows.inputs == TEXTS and rows.names() == ("no", "yes") and rows.named() == ["no", "yes", "yes", "no"]
    assert len(rows.files[0]["sha256"]) == 64 and read("one", root=tmp_path).files == rows.files
    (tmp_path / "one" / "cache-1.arrow").write_bytes(b"left by a mapping")
    assert read("one", root=tmp_path).files == rows.files
    both = datasets.DatasetDict({"train": data_set(), "test": data_set().select([1])})
    both.save_to_disk(str(tmp_path / "two"))
    assert set(parts("two", root=tmp_path)) == {"train", "test"}
    assert read("two", root=tmp_path, split="test").named() == ["yes"]
    next((tmp_path / "one").glob("data-*.arrow")).write_bytes(b"cut")
    with pytest.raises(DataError, match="one: not a readable data set folder"):
        read("one", root=tmp_path)


def test_data_sets_of_pictures(tmp_path):
    (tmp_path / "p.png").write_bytes(png(PIXELS[0]))
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    images = [str(tmp_path / "p.png"), {"bytes": png(PIXELS[1]), "path": None}]
    held = datasets.Dataset.from_dict({"image": images, "label": [0, 1]}, features=features)
    assert np.array_equal(read(held).inputs.numpy(), PIXELS[:2])


def test_the_hub_is_asked_without_running_code(monkeypatch):
    asked = []

    def load(*arguments, **options):
        asked.append((arguments, options))
        return datasets.DatasetDict({"train": data_set(), "test": data_set().select([0])})

    monkeypatch.setattr(datasets, "load_dataset", load)
    rows = read("hub:someone/reviews:small", split="test")
    assert rows.named() == ["no"] and rows.files[0]["name"] == "hub:someone/reviews:small"
    assert asked == [(("someone/reviews", "small"), {})]
    assert read("hub:someone/reviews", split="train").files[0]["sha256"] != rows.files[0]["sha256"]
    assert asked[-1][0] == ("someone/reviews", None)

    def fail(*arguments):
        raise datasets.exceptions.DatasetNotFoundError("nothing there")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(DataError, match="hub:someone/gone: cannot be loaded from the hub .nothing there."):
        read("hub:someone/gone")


def test_rows_from_memory_may_be_a_list_or_a_data_frame():
    listed = [{"input": text, "target": label} for text, label in zip(TEXTS, LABELS, strict=True)]
    for given in (listed, pa.table(columns()), datasets.Dataset.from_list(listed).to_pandas()):
        rows = read("memory:rows", data={"rows": given})
        assert rows.inputs == TEXTS and list(rows.labels) == LABELS and rows.files == read(columns()).files
    assert (
        read("memory:rows", data={"rows": [{**row, "split": "test"} for row in listed]}, split="test").named() == LABELS
    )
    with pytest.raises(DataError, match="memory, row 1, column 'target': the label is missing"):
        read("memory:rows", data={"rows": [listed[0], {"input": "x"}]})
    for given, kind in (([1, 2], "list"), ({1, 2}, "set"), (None, "NoneType"), (PIXELS, "ndarray")):
        with pytest.raises(
            DataError, match=rf"memory: a {kind} cannot be read as rows .*; give a dict of columns, a list"
        ):
            read("memory:rows", data={"rows": given})


def test_memory(tmp_path):
    rows = read(columns())
    assert rows.inputs == TEXTS and rows.files[0]["sha256"] != read(columns(input=TEXTS[::-1])).files[0]["sha256"]
    named = read("memory:mine", data={"mine": data_set()})
    assert named.named() == ["no", "yes", "yes", "no"]
    with pytest.raises(DataError, match="memory:mien: no such data was handed over; did you mean 'mine'"):
        read("memory:mien", data={"mine": data_set()})
    tensors = read({"input": torch.from_numpy(PIXELS), "target": [0, 1, 0, 1]})
    objects = read({"image": [Image.fromarray(x) for x in PIXELS], "label": [0, 1, 0, 1]})
    listed = read({"image": list(PIXELS), "label": [0, 1, 0, 1]})
    assert torch.equal(tensors.inputs, objects.inputs) and torch.equal(tensors.inputs, listed.inputs)
    assert read({"text": TEXTS, "label": LABELS, "class_names": ["word", "sky", "fruit"]}).named() == LABELS
    with pytest.raises(DataError, match="row 0, column 'input': 3 is not text"):
        read({"input": [3, 4], "target": [0, 1]})
    with pytest.raises(DataError, match="arrays differ in shape"):
        read({"image": [PIXELS[0], PIXELS[0, :2]], "label": [0, 1]})
