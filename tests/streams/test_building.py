from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from rankwise.config import StreamSettings
from rankwise.errors import ConflictError, DataError, UsageError
from rankwise.streams import Stream, build


def mine(each=10, classes="abcd", prefix=""):
    labels = [c for c in classes for _ in range(each)]
    return {"input": [f"{prefix}{c}{i}" for i, c in enumerate(labels)], "target": labels}


def test_the_default_is_digits_by_twos():
    stream = build({}, seed=1)
    assert isinstance(stream, Stream) and stream.kind == "class-incremental" and stream.modality == "image"
    assert [len(task.classes) for task in stream.tasks] == [2] * 5
    total = sum(len(split) for task in stream.tasks for split in task.splits().values())
    assert total == 1797 and sum(len(task.test) for task in stream.tasks) == 400
    assert stream.record["test_cuts"] == [{"source": "digits", "rows": 400, "seed": 1797}]
    assert set(stream.record["overlap"].values()) == {0}


def test_the_run_seed_moves_the_order_but_not_the_test():
    one, two = build({}, seed=1), build({}, seed=2)
    assert one.record["class_order"] != two.record["class_order"]

    def tested(stream):
        return sorted(i for task in stream.tasks for i in task.test.ids.tolist())

    assert tested(one) == tested(two)
    assert build({}, seed=1).record == one.record


def test_the_record_is_enough_to_build_it_again():
    stream = build({"name": "digits", "classes_per_task": 4, "validation": 7, "train_limit": 40}, seed=9)
    record = json.loads(json.dumps(stream.record))
    assert build(record["settings"], record["seed"]).record == record


def test_settings_as_record_or_mapping():
    settings = StreamSettings(name="digits", classes_per_task=5, order="given")
    assert build(settings, 0).record == build({"name": "digits", "classes_per_task": 5, "order": "given"}, 0).record
    with pytest.raises(UsageError, match="unknown key 'clases'"):
        build({"clases": 3}, 0)
    with pytest.raises(UsageError, match="cannot be given together"):
        build({"shots": 1, "train_limit": 2}, 0)


def test_a_test_is_cut_where_there_is_none():
    data = {"rows": mine()}
    one, two = (build({"name": "x", "train": "memory:rows", "order": "given"}, seed, data=data) for seed in (1, 2))
    for task, again in zip(one.tasks, two.tasks, strict=True):
        assert len(task.test) == 4 and torch.equal(task.test.ids, again.test.ids)
        parts = [set(split.ids.tolist()) for split in task.splits().values()]
        assert sum(map(len, parts)) == len(set.union(*parts)) == 20
    assert one.record["test_cuts"][0] == {"source": "memory", "rows": 8, "fraction": 0.2, "seed": 2026}
    with pytest.raises(
        DataError, match="memory: 4 rows, each with a label of its own, leave none to be a test; choose"
    ):
        build({"name": "x", "train": "memory:rows"}, 1, data={"rows": mine(each=1)})
    with pytest.raises(DataError, match="memory: 2 rows are too few to cut a test from"):
        build({"name": "x", "train": "memory:rows"}, 1, data={"rows": mine(each=2, classes="a")})


def test_the_kind_follows_the_label_sets_of_the_tasks():
    data = {"a": mine(), "b": mine(prefix="b "), "c": mine(classes="xy"), "t": mine(each=2, prefix="t ")}

    def kind(*names, **more):
        tasks = [{"name": name, "train": f"memory:{name}"} for name in names]
        return build({"name": "s", "tasks": tasks, **more}, 1, data=data)

    assert kind("a", "b").kind == "domain-incremental"
    assert kind("a", "c").kind == "cross-domain" and kind("a").kind == "cross-domain"
    assert kind("a", "b", kind="cross-domain").class_names[:2] == ("a/a", "a/b")
    assert kind("a", "c", kind="task-incremental").candidates == "task"
    with pytest.raises(ConflictError, match="'class-incremental' divides one data set"):
        kind("a", "b", kind="class-incremental")
    own = {
        "name": "s",
        "train_limit": 8,
        "tasks": [{"name": "a", "train": "memory:a", "test": "memory:t", "train_limit": 4}],
    }
    task = build(own, 1, data=data).tasks[0]
    assert len(task.train) == 4 and len(task.test) == 8 and task.test.inputs[0].startswith("t ")


def test_one_data_set_and_its_kinds():
    with pytest.raises(ConflictError, match="needs several data sets"):
        build({"kind": "cross-domain"}, 1)
    with pytest.raises(ConflictError, match="rotations make domains"):
        build({"kind": "class-incremental", "rotations": [0]}, 1)
    with pytest.raises(ConflictError, match="needs rotations, group_by or tasks"):
        build({"kind": "domain-incremental"}, 1)
    turned = build({"rotations": [0, 60], "train_limit": 50, "test_limit": 20}, 1)
    assert [task.name for task in turned.tasks] == ["rotated-0", "rotated-60"]
    assert torch.equal(turned.tasks[0].train.ids, turned.tasks[1].train.ids)
    grouped = {"rows": {**mine(), "place": ["x", "y"] * 20}}
    stream = build(
        {"name": "g", "train": "memory:rows", "kind": "domain-incremental", "group_by": "place"}, 1, data=grouped
    )
    assert [task.name for task in stream.tasks] == ["x", "y"] and len(stream.tasks[0].classes) == 4


def test_a_test_file_need_not_have_the_split_column(tmp_path):
    (tmp_path / "a.csv").write_text("input,target,part\n1,x,train\n2,y,train\n3,x,dev\n")
    (tmp_path / "b.csv").write_text("input,target\n4,x\n5,y\n")
    settings = {"name": "s", "train": "a.csv", "test": "b.csv", "split": "part", "validation": 0}
    task = build(settings, 1, tmp_path).tasks[0]
    assert task.train.inputs == ["1", "2"] and task.test.inputs == ["4", "5"]
    with pytest.raises(DataError, match="no split 'test'.*known: dev, train"):
        build({**settings, "test": "a.csv"}, 1, tmp_path)


# Real data.


def olora(*names):
    here = "data/text_cl/olora"
    return [{"name": n, "train": f"{here}/{n}.train.parquet", "test": f"{here}/{n}.test.parquet"} for n in names]


def test_text_tasks_side_by_side(shared):
    settings = {"name": "olora", "tasks": olora("dbpedia", "agnews", "amazon"), "input": "input", "target": "target"}
    stream = build({**settings, "train_limit": 300}, 1, shared)
    assert stream.kind == "cross-domain" and stream.modality == "text" and len(stream.class_names) == 23
    assert [len(task.classes) for task in stream.tasks] == [14, 4, 5]
    for task in stream.tasks:
        assert (len(task.train), len(task.validation), len(task.test)) == (300, 60, 1000)
        counts = torch.bincount(task.train.labels)[list(task.classes)]
        assert counts.max() - counts.min() <= 1
        assert not set(task.train.inputs) & set(task.test.inputs)
    assert stream.record["overlap"] == {"dbpedia": 0, "agnews": 0, "amazon": 0}
    hashes = {entry["name"]: entry["sha256"] for entry in stream.record["sources"]}
    assert hashes["data/text_cl/olora/agnews.test.parquet"].startswith("ca298c69f4ad601d")
    assert len(hashes) == 6


def test_reviews_are_domains_of_one_label_set(shared):
    stream = build({"name": "reviews", "tasks": olora("amazon", "yelp"), "train_limit": 100}, 1, shared)
    assert stream.kind == "domain-incremental" and len(stream.class_names) == 5


def test_omniglot_by_alphabet(shared):
    stream = build({"name": "omniglot", "train": "data/images/omniglot.npz", "group_by": "alphabet"}, 1, shared)
    assert len(stream.tasks) == 8 and sum(len(task.classes) for task in stream.tasks) == 242
    for task in stream.tasks:
        assert {stream.class_names[c].split("/")[0] for c in task.classes} == {task.name}
        assert torch.bincount(task.validation.labels)[list(task.classes)].tolist() == [3] * len(task.classes)
    assert stream.tasks[0].train.inputs.shape[1:] == (28, 28)
    given = build(
        {"name": "o", "train": "data/images/omniglot.npz", "group_by": "alphabet", "order": "given"}, 1, shared
    )
    assert given.tasks[0].name == "Balinese" and given.tasks[0].classes == tuple(range(24))


def test_traffic_signs_in_colour(shared):
    settings = {"name": "signs", "train": "data/images/traffic_signs.npz", "classes_per_task": 10, "shots": 16}
    stream = build(settings, 1, shared)
    assert [len(task.classes) for task in stream.tasks] == [10, 10, 10, 10, 3]
    assert all(len(task.train) == 16 * len(task.classes) for task in stream.tasks)
    assert stream.tasks[0].train.inputs.shape[1:] == (32, 32, 3)
    held = np.load(shared / "data/images/traffic_signs.npz", allow_pickle=False)
    task = stream.tasks[0]
    assert np.array_equal(task.train.inputs.numpy(), held["x_train"][task.train.ids.numpy()])
    assert np.array_equal(task.test.labels.numpy(), held["y_test"][task.test.ids.numpy()])


def test_cifar_by_its_split_column(shared):
    settings = {"name": "cifar", "train": "data/images/cifar10.parquet", "kind": "task-incremental", "train_limit": 40}
    stream = build(settings, 1, shared)
    assert stream.class_names[:2] == ("airplane", "automobile") and stream.candidates == "task"
    assert [len(task.test) for task in stream.tasks] == [200] * 5 and len(stream.tasks[0].train) == 40
    assert stream.tasks[0].test.inputs.shape == (200, 32, 32, 3)
    assert not set(stream.tasks[0].test.ids.tolist()) & set(stream.tasks[0].train.ids.tolist())
    numbered = build({**settings, "target": "label"}, 1, shared)
    assert numbered.class_names == tuple("0123456789")
