"""What is odd about a stream, though nothing to refuse, is said in a line."""

from __future__ import annotations

import io
import json

import datasets
import numpy as np
import pytest
from PIL import Image

from rankwise.streams import build


def rows(texts, labels):
    return {"text": list(texts), "label": list(labels)}


def letters(each=10, classes="ab", prefix=""):
    labels = [c for c in classes for _ in range(each)]
    return rows((f"{prefix}{c}{i}" for i, c in enumerate(labels)), labels)


def notes(data, test=None, **settings):
    held = {"rows": data} if test is None else {"rows": data, "test": test}
    given = {} if test is None else {"test": "memory:test"}
    return list(build({"train": "memory:rows", **given, **settings}, 1, data=held).notes)


def test_a_stream_in_order_has_no_notes():
    assert notes(letters()) == [] and build({"train_limit": 20}, 1).notes == ()


def test_test_rows_that_are_training_rows_are_counted_by_task():
    assert notes(letters(), letters(each=3, prefix="new "), name="s", order="given", validation=0) == []
    test = rows([*letters()["text"][:3], "new", "b19", "b new"], "aaaabb")
    said = notes(letters(), test, name="s", order="given", classes_per_task=1, validation=0)
    assert said == ["3 of 4 test rows of 's-1', 1 of 2 test rows of 's-2' are training rows, too"]
    said = notes(letters(), test, name="s", order="given", classes_per_task=1, validation=0, first_tasks=1)
    assert said[0] == "3 of 4 test rows of 's-1' are training rows, too"


def test_one_class_in_all_is_said_and_one_a_task_is_not():
    assert notes(letters(classes="a")) == ["all rows are of one class, 'a', so every score is 1.00 whatever is learnt"]
    tasks = [{"name": "t", "train": "memory:rows"}]
    assert len(build({"tasks": tasks}, 1, data={"rows": letters(classes="a")}).notes) == 1
    assert notes(letters(classes="abc"), classes_per_task=1) == []
    free = rows((f"question {i}" for i in range(20)), (f"answer {i}" for i in range(20)))
    assert notes(free, kind="instruction") == []


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_a_label_that_may_be_none_is_said_whatever_the_file(tmp_path, ending):
    labels = ["nan", "b"] * 10
    if ending == "csv":
        lines = ["text,label", *(f"t{i},{label}" for i, label in enumerate(labels))]
    else:
        lines = [json.dumps({"text": f"t{i}", "label": label}) for i, label in enumerate(labels)]
    (tmp_path / f"mail.{ending}").write_text("\n".join(lines))
    stream = build({"train": f"mail.{ending}"}, 1, tmp_path)
    assert stream.notes == ("label 'nan' counts as a class of its own; if its rows have no label, remove them",)


@pytest.mark.parametrize("name", ["validation", "dev"])
def test_a_part_of_a_data_set_that_nothing_uses_is_named(name):
    made = {part: datasets.Dataset.from_dict(letters(prefix=part)) for part in ("train", name, "test")}
    said = notes(datasets.DatasetDict(made))
    assert said == [
        f"memory:rows: the rows of '{name}' are not used; validation rows are cut from train (stream.validation)"
    ]


@pytest.mark.parametrize("name", ["validation", "val", "dev"])
def test_a_folder_of_pictures_may_have_a_validation_part(tmp_path, name):
    for seed, part in enumerate(("train", name, "test")):
        for label in "ab":
            (tmp_path / "set" / part / label).mkdir(parents=True)
            for i in range(5):
                pixels = np.random.default_rng([seed, ord(label), i]).integers(0, 256, (6, 6, 3), dtype=np.uint8)
                held = io.BytesIO()
                Image.fromarray(pixels).save(held, format="PNG")
                (tmp_path / "set" / part / label / f"{i}.png").write_bytes(held.getvalue())
    stream = build({"train": "set"}, 1, tmp_path)
    assert [len(split) for split in stream.tasks[0].splits().values()] == [8, 2, 10]
    assert [note.partition(";")[0] for note in stream.notes] == [f"set: the rows of '{name}' are not used"]
