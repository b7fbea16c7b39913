from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from rankwise.errors import ConflictError, DataError
from rankwise.streams.sampling import Sampling
from rankwise.streams.scenarios import (
    Domain,
    class_incremental,
    cross_domain,
    domain_incremental,
    domains_by_column,
    rotated,
    task_incremental,
)
from rankwise.streams.sources import read

CLASSES = tuple("abcdefg")


def rows(classes=CLASSES, each=10, prefix="train", **columns):
    labels = [c for c in classes for _ in range(each)]
    texts = [f"{prefix} {c} {i}" for i, c in enumerate(labels)]
    extra = {key: [rule(c) for c in labels] for key, rule in columns.items()}
    return read({"input": texts, "target": labels, **extra}, extra=list(columns))


TRAIN, TEST = rows(), rows(each=4, prefix="test")


def images(each=6, size=(9, 9)):
    labels = [0, 1, 2] * each
    pixels = np.random.default_rng(each).integers(0, 256, (len(labels), *size), dtype=np.uint8)
    return read({"input": pixels, "target": labels})


def ids(split):
    return set(split.ids.tolist())


def layout(stream):
    return [
        (task.name, task.classes, *((part, split.ids.tolist()) for part, split in task.splits().items()))
        for task in stream.tasks
    ]


@pytest.mark.parametrize("each", [1, 2, 3, 7])
def test_task_sizes_sum_to_the_classes_and_are_disjoint(each):
    stream = class_incremental(TRAIN, TEST, seed=3, classes_per_task=each)
    sizes = [len(task.classes) for task in stream.tasks]
    assert sum(sizes) == 7 and set(sizes[:-1]) <= {each} and 1 <= sizes[-1] <= each
    assert sorted(c for task in stream.tasks for c in task.classes) == list(range(7))
    assert stream.record["class_order"] == [c for task in stream.tasks for c in task.classes]
    assert stream.candidates == "seen" and stream.kind == "class-incremental"


def test_class_ids_are_positions_in_the_names_whatever_the_order():
    for seed in range(4):
        stream = class_incremental(TRAIN, TEST, seed=seed, classes_per_task=3)
        assert stream.class_names == CLASSES
        for task in stream.tasks:
            for split in task.splits().values():
                for text, label in zip(split.inputs, split.labels.tolist(), strict=True):
                    assert text.split()[1] == stream.class_names[label] and label in task.classes


def test_no_task_holds_rows_of_future_classes_and_no_test_row_is_taught():
    stream = class_incremental(TRAIN, TEST, seed=1, classes_per_task=2, sampling=Sampling(validation=0.2))
    seen: set[int] = set()
    for task in stream.tasks:
        seen |= set(task.classes)
        for split in task.splits().values():
            assert set(split.labels.tolist()) <= seen
        assert all(text.startswith("test") for text in task.test.inputs)
        assert all(text.startswith("train") for text in [*task.train.inputs, *task.validation.inputs])
    assert sum(len(task.test) for task in stream.tasks) == len(TEST)


def test_validation_is_stratified_disjoint_and_recorded():
    stream = class_incremental(TRAIN, TEST, seed=1, classes_per_task=3, sampling=Sampling(validation=0.3))
    for task, record in zip(stream.tasks, stream.record["tasks"], strict=True):
        assert not ids(task.train) & ids(task.validation)
        assert torch.bincount(task.validation.labels, minlength=7)[list(task.classes)].tolist() == [3] * len(
            task.classes
        )
        assert record["validation_ids"] == task.validation.ids.tolist()
        assert record["sizes"] == {part: len(split) for part, split in task.splits().items()}
    assert class_incremental(TRAIN, TEST, seed=1, classes_per_task=3).tasks[0].validation is None


def test_the_seed_decides_everything():
    def made(seed):
        sampling = Sampling(validation=0.2, test_limit=6)
        return class_incremental(TRAIN, TEST, seed=seed, classes_per_task=2, sampling=sampling)

    torch.manual_seed(0)
    first = made(5)
    torch.manual_seed(1)
    assert layout(first) == layout(made(5)) and first.record == made(5).record
    assert len({tuple(made(seed).record["class_order"]) for seed in range(6)}) == 6
    assert json.loads(json.dumps(first.record)) == first.record and first.record["seed"] == 5


def test_the_given_order_is_the_order_of_the_names():
    stream = class_incremental(TRAIN, TEST, seed=5, classes_per_task=3, order="given")
    assert [task.classes for task in stream.tasks] == [(0, 1, 2), (3, 4, 5), (6,)]
    assert [task.name for task in stream.tasks] == ["stream-1", "stream-2", "stream-3"]


def test_limits_are_even_over_classes():
    sampling = Sampling(train_limit=7, test_limit=5)
    stream = class_incremental(TRAIN, TEST, seed=1, classes_per_task=3, order="given", sampling=sampling)
    for task in stream.tasks[:2]:
        assert sorted(torch.bincount(task.train.labels)[list(task.classes)].tolist()) == [2, 2, 3]
        assert sorted(torch.bincount(task.test.labels)[list(task.classes)].tolist()) == [1, 2, 2]


def test_shots_are_exact_per_class_reproducible_and_never_from_test():
    big = rows(each=40)
    sampling = Sampling(shots=16, validation=0.2)
    stream = class_incremental(big, TEST, seed=1, classes_per_task=3, sampling=sampling)
    for task in stream.tasks:
        assert torch.bincount(task.train.labels)[list(task.classes)].tolist() == [16] * len(task.classes)
        assert not ids(task.train) & ids(task.validation)
    assert layout(stream) == layout(class_incremental(big, TEST, seed=1, classes_per_task=3, sampling=sampling))
    with pytest.raises(DataError, match="class 'a' has 10 training rows, fewer than shots = 16"):
        class_incremental(TRAIN, TEST, seed=1, classes_per_task=7, order="given", sampling=sampling)


def test_task_incremental_ranks_within_the_task():
    train, test = rows(CLASSES[:6]), rows(CLASSES[:6], 4, "test")
    stream = task_incremental(train, test, seed=1, classes_per_task=2)
    assert layout(stream) == layout(class_incremental(train, test, seed=1, classes_per_task=2))
    assert stream.candidates == "task" and stream.kind == "task-incremental"
    with pytest.raises(DataError, match="allowed only if candidates are 'seen'"):
        task_incremental(TRAIN, TEST, seed=1, classes_per_task=2)


def test_groups_by_name():
    groups = [["g", "a"], ["b"], ["c", "d", "e", "f"]]
    stream = class_incremental(TRAIN, TEST, seed=1, groups=groups)
    assert [task.classes for task in stream.tasks] == [(6, 0), (1,), (2, 3, 4, 5)]
    orders = {
        tuple(class_incremental(TRAIN, TEST, seed=s, groups=groups, order="seed").record["class_order"])
        for s in range(9)
    }
    assert len(orders) > 1
    for wrong, said in [
        ([["g", "x"]], "groups name the class 'x'"),
        ([["g", "a"], ["a"]], "class 'a' is in 2 groups"),
        ([["g", "a"]], r"leave out 5 classes \(b, c, d, e, f\)"),
    ]:
        with pytest.raises(DataError, match=said):
            class_incremental(TRAIN, TEST, seed=1, groups=wrong)


def test_groups_by_column():
    def vowel(c):
        return "vowel" if c in "ae" else "consonant"

    train, test = rows(kind=vowel), rows(each=2, prefix="test", kind=vowel)
    stream = class_incremental(train, test, seed=1, group_by="kind", order="given")
    assert [(task.name, task.classes) for task in stream.tasks] == [("vowel", (0, 4)), ("consonant", (1, 2, 3, 5, 6))]
    with pytest.raises(DataError, match="column 'topic' was not read; .*known: kind"):
        class_incremental(train, test, seed=1, group_by="topic")
    mixed = read({"input": ["1", "2"], "target": ["a", "a"], "kind": ["x", "y"]}, extra=["kind"])
    with pytest.raises(DataError, match="row 1: class 'a' is in groups 'x' and 'y' of column 'kind'"):
        class_incremental(mixed, mixed, seed=1, group_by="kind")


def test_exactly_one_way_to_divide():
    with pytest.raises(ConflictError, match="exactly one of"):
        class_incremental(TRAIN, TEST, seed=1)
    with pytest.raises(ConflictError, match="not 2"):
        class_incremental(TRAIN, TEST, seed=1, classes_per_task=2, groups=[["a"]])


def test_test_rows_of_untaught_classes_are_refused():
    with pytest.raises(DataError, match="row 0: label 'h' has no training row"):
        class_incremental(TRAIN, rows(("h",), 2, "test"), seed=1, classes_per_task=2)
    named = read({"text": ["x", "y"], "label": [0, 1], "class_names": ["a", "b", "c"]})
    untaught = read({"text": ["z"], "label": [2], "class_names": ["a", "b", "c"]})
    with pytest.raises(DataError, match="test rows of 'c' but no training row of it"):
        class_incremental(named, untaught, seed=1, classes_per_task=1)


def test_classes_without_rows_keep_their_place_but_join_no_task():
    held = read({"text": ["x", "y"], "label": [0, 2], "class_names": ["a", "b", "c"]})
    stream = class_incremental(held, held, seed=1, classes_per_task=2, order="given")
    assert stream.class_names == ("a", "b", "c") and stream.tasks[0].classes == (0, 2)


def test_test_rows_found_in_train_are_counted_not_dropped():
    train = read({"text": ["same", "one", "two", "three"], "label": list("aabb")})
    test = read({"text": ["same", "other", "one "], "label": list("aba")})
    stream = class_incremental(train, test, seed=1, classes_per_task=1, order="given")
    assert stream.record["overlap"] == {"stream-1": 1, "stream-2": 0}
    assert [len(task.test) for task in stream.tasks] == [2, 1]


# Domains.


def domain(name, classes=CLASSES, **choices):
    return Domain(name, rows(classes, prefix=f"{name} train"), rows(classes, 4, f"{name} test"), **choices)


def test_domains_share_one_numbering():
    stream = domain_incremental([domain("x"), domain("y", CLASSES[2:5])], seed=1, sampling=Sampling(validation=0.2))
    assert stream.class_names == CLASSES and stream.kind == "domain-incremental"
    assert [task.classes for task in stream.tasks] == [tuple(range(7)), (2, 3, 4)]
    assert all(text.startswith("y train") for text in stream.tasks[1].train.inputs)
    orders = {
        tuple(t.name for t in domain_incremental([domain("x"), domain("y")], seed=s, order="seed").tasks)
        for s in range(9)
    }
    assert orders == {("x", "y"), ("y", "x")}


def test_number_labels_of_several_domains_are_ordered_by_value():
    few = read({"text": ["p", "q"], "label": [2, 10]})
    more = read({"text": ["r", "s"], "label": [2, 1]})
    stream = domain_incremental([Domain("x", few, few), Domain("y", more, more)], seed=1)
    assert stream.class_names == ("1", "2", "10") and [t.classes for t in stream.tasks] == [(1, 2), (0, 1)]


def test_domains_by_column():
    texts = [f"{i}" for i in range(8)]
    held = read({"text": texts, "label": list("abab") * 2, "place": list("xxxxyyyy")}, extra=["place"])
    stream = domain_incremental(domains_by_column(held, held, "place"), seed=1)
    assert [(task.name, task.train.inputs) for task in stream.tasks] == [("x", texts[:4]), ("y", texts[4:])]


def test_rotated_domains_hold_the_same_pictures_turned():
    train, test = images(), images(each=2)
    stream = domain_incremental(rotated(train, test, [0, 90, 45]), seed=1, sampling=Sampling(validation=0.25))
    upright, quarter, slanted = stream.tasks
    assert [task.name for task in stream.tasks] == ["rotated-0", "rotated-90", "rotated-45"]
    assert torch.equal(torch.rot90(upright.train.inputs, 1, (1, 2)), quarter.train.inputs)
    assert torch.equal(upright.validation.ids, quarter.validation.ids)
    assert torch.equal(upright.validation.ids, slanted.validation.ids)
    assert not torch.equal(slanted.test.inputs, upright.test.inputs)
    with pytest.raises(DataError, match="rotations need pictures"):
        rotated(TRAIN, TEST, [90])


def test_cross_domain_offsets_and_names():
    sets = [domain("x", CLASSES[:3]), domain("y", ("c", "z")), domain("w", ("m", "n", "o"))]
    stream = cross_domain(sets, seed=1)
    sizes = [len(task.classes) for task in stream.tasks]
    starts = np.cumsum([0, *sizes]).tolist()
    for task, low, high in zip(stream.tasks, starts, starts[1:], strict=False):
        assert task.classes == tuple(range(low, high))
        for split in task.splits().values():
            assert split.labels.min() >= low and split.labels.max() < high
    assert stream.class_names == ("a", "b", "x/c", "y/c", "z", "m", "n", "o") and starts[-1] == 8
    assert stream.candidates == "all" and stream.kind == "cross-domain"
    within = cross_domain(sets, seed=1, candidates="task")
    assert within.candidates == "task" and within.kind == "task-incremental"


def test_cross_domain_offsets_follow_the_drawn_order():
    sets = [domain("x", CLASSES[:3]), domain("y", ("p", "q"))]
    swapped = next(s for s in (cross_domain(sets, seed=i, order="seed") for i in range(20)) if s.tasks[0].name == "y")
    assert swapped.class_names == ("p", "q", "a", "b", "c") and swapped.tasks[1].classes == (2, 3, 4)


def test_a_domain_may_have_its_own_limits():
    sets = [domain("x", sampling=Sampling(train_limit=14)), domain("y")]
    assert [len(task.train) for task in cross_domain(sets, seed=1, sampling=Sampling(train_limit=21)).tasks] == [14, 21]


def test_one_stream_holds_one_modality_and_distinct_names():
    pixels = images()
    with pytest.raises(DataError, match="mix image and text"):
        cross_domain([domain("x"), Domain("y", pixels, pixels)], seed=1)
    with pytest.raises(DataError, match="task name 'x' is used 2 times"):
        cross_domain([domain("x"), domain("x")], seed=1)
