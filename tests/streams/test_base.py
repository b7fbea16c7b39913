from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from rankwise.errors import DataError
from rankwise.streams.base import Split, Stream, Task, View


def split(labels, start=0):
    texts = [f"text {i}" for i in range(len(labels))]
    return Split(texts, torch.tensor(labels, dtype=torch.int64), torch.arange(start, start + len(labels)))


def task(name="a", index=0, classes=(0, 1), train=(0, 1, 1), validation=None, test=(0, 1)):
    held_out = None if validation is None else split(list(validation), 100)
    return Task(name, index, tuple(classes), split(list(train)), held_out, split(list(test)))


def stream(tasks, names=("x", "y"), **changes):
    return Stream("s", "class-incremental", "text", tuple(names), tuple(tasks), {}, **changes)


def test_take_keeps_inputs_labels_and_ids_together():
    whole = split([3, 4, 5, 6], start=10)
    part = whole.take([2, 0])
    assert part.inputs == ["text 2", "text 0"]
    assert part.labels.tolist() == [5, 3] and part.ids.tolist() == [12, 10]
    assert whole.take(torch.tensor([False, True, True, False])).ids.tolist() == [11, 12]
    assert len(whole.take([])) == 0


def test_take_of_images_stays_a_tensor_and_of_a_lazy_sequence_stays_lazy():
    images = torch.arange(3 * 4, dtype=torch.uint8).reshape(3, 2, 2)
    assert torch.equal(Split(images, torch.zeros(3, dtype=torch.int64), torch.arange(3)).take([2]).inputs, images[2:])

    class Counting(View):
        reads = 0

        def __getitem__(self, i):
            Counting.reads += 1
            return super().__getitem__(i)

    lazy = Counting([np.zeros((2, 2)), np.ones((3, 3)), np.ones((1, 1))], range(3))
    part = Split(lazy, torch.zeros(3, dtype=torch.int64), torch.arange(3)).take([2, 1]).take([1])
    assert isinstance(part.inputs, View) and Counting.reads == 0
    assert part.inputs[0].shape == (3, 3) and part.ids.tolist() == [1]
    assert [x.shape for x in part.inputs] == [(3, 3)] and part.inputs[:1][0].shape == (3, 3)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"labels": torch.tensor([0.0, 1.0])}, "labels must be a one-dimensional int64 tensor, got torch.float32"),
        ({"labels": [0, 1]}, "got list"),
        ({"ids": torch.tensor([0])}, "lengths disagree"),
        ({"ids": torch.tensor([4, 4])}, "ids repeat"),
        ({"inputs": torch.zeros(2, 4, 4)}, "images must be uint8"),
        ({"inputs": torch.zeros(2, 3, 4, 4, dtype=torch.uint8)}, "channels|N, H, W, 3"),
    ],
)
def test_a_wrong_split_is_refused(change, said):
    right = {"inputs": ["a", "b"], "labels": torch.tensor([0, 1]), "ids": torch.tensor([0, 1])}
    with pytest.raises(DataError, match=said):
        Split(**{**right, **change})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"train": ()}, "task 'a': train has no rows"),
        ({"test": ()}, "test has no rows"),
        ({"validation": ()}, "validation has no rows"),
        ({"test": (0, 2)}, r"classes \[2\] in test never occur in train"),
        ({"validation": (5,)}, r"classes \[5\] in validation never occur"),
        ({"train": (0, 1, 7)}, r"classes \[7\] in train are not among the task's classes"),
        ({"classes": (0, 1, 2)}, r"classes \[2\] have no training row"),
        ({"classes": (0, 1, 1)}, "distinct"),
        ({"name": ""}, "name is empty"),
    ],
)
def test_a_wrong_task_is_refused(change, said):
    with pytest.raises(DataError, match=said):
        task(**change)


def test_a_right_task_lists_its_splits():
    assert list(task().splits()) == ["train", "test"]
    assert list(task(validation=(1,)).splits()) == ["train", "validation", "test"]


@pytest.mark.parametrize(
    ("tasks", "changes", "said"),
    [
        ([], {}, "no tasks"),
        ([task(), task(index=1)], {}, "task name 'a' is used 2 times"),
        ([task(index=1)], {}, "index 1 but stands at 0"),
        ([task()], {"names": ("x",)}, r"labels \[1\] are out of range 0..0"),
        ([task()], {"names": ("x", "x")}, "class name 'x' is used 2 times"),
        ([task()], {"candidates": "own"}, "must be 'seen', 'task' or 'all'"),
    ],
)
def test_a_wrong_stream_is_refused(tasks, changes, said):
    with pytest.raises(DataError, match=said):
        stream(tasks, **changes)


def test_one_class_tasks_need_candidates_seen():
    alone = task(classes=(0,), train=(0, 0), test=(0,))
    assert len(stream([alone]).tasks) == 1
    with pytest.raises(DataError, match="one class .'x'. .* allowed only if candidates are 'seen'"):
        stream([alone], candidates="task")


def test_the_record_must_be_plain_json():
    with pytest.raises(DataError, match="not plain JSON"):
        Stream("s", "class-incremental", "text", ("x", "y"), (task(),), {"order": torch.tensor(1)})


def test_records_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        task().name = "b"
