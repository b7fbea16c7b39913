from __future__ import annotations

import ast
import dataclasses
import inspect

import pytest

from rankwise.config import stream as config_module
from rankwise.errors import ConflictError, UsageError
from rankwise.streams import settings as settings_module
from rankwise.streams.settings import StreamSettings, TaskSettings


def test_defaults_are_the_built_in_digits():
    assert StreamSettings.from_dict({}) == StreamSettings(name="digits", validation=0.2)


def test_none_means_left_out_and_lists_become_tuples():
    plain = {"name": "x", "train": "a.csv", "test": None, "input": ["one", "two"], "groups": [["a", 1], ["b"]]}
    settings = StreamSettings.from_dict(plain)
    assert settings.input == ("one", "two") and settings.groups == (("a", "1"), ("b",)) and settings.test is None
    again = StreamSettings.from_dict(dataclasses.asdict(settings))
    assert again == settings


def test_tasks_become_records():
    settings = StreamSettings.from_dict({"name": "x", "tasks": [{"name": "a", "train": "a.csv", "train_limit": 3}]})
    assert settings.tasks == (TaskSettings("a", "a.csv", train_limit=3),)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"clases_per_task": 2}, "unknown key 'clases_per_task'; did you mean 'classes_per_task'"),
        ({"kind": "class-incrementl"}, "did you mean 'class-incremental'"),
        ({"order": "random"}, "order = 'random' is unknown"),
        ({"classes_per_task": 0}, "classes_per_task = 0 is not a whole number of at least 1"),
        ({"shots": True}, "shots = True is not"),
        ({"validation": 1.0}, "validation = 1.0 is not a fraction"),
        ({"validation": -1}, "validation = -1"),
        ({"name": "x", "train": "a", "input": ["a", "b", "c"]}, "one column name or a list of two"),
        ({"rotations": [0, 400]}, "rotations = 400 is not an angle"),
        ({"rotations": []}, "non-empty list"),
        ({"name": "x", "tasks": [{"name": "a"}]}, r"tasks\[0\]: 'train' is missing"),
        ({"name": "x", "tasks": [{"name": "a", "trian": "b"}]}, r"tasks\[0\]: unknown key 'trian'.*'train'"),
        ({"name": "x", "tasks": ["a"]}, "expected a table of keys, got str"),
        ({"name": "digit"}, "did you mean 'digits'.*or say where the rows are"),
    ],
)
def test_what_is_wrong_is_named(values, said):
    with pytest.raises(UsageError, match=said) as caught:
        StreamSettings.from_dict(values, source="run.toml")
    assert str(caught.value).startswith("run.toml, [stream]")


@pytest.mark.parametrize(
    "values",
    [
        {"name": "x", "train": "a", "shots": 1, "train_limit": 2},
        {"name": "x", "train": "a", "classes_per_task": 2, "group_by": "g"},
        {"name": "x", "train": "a", "tasks": [{"name": "a", "train": "a"}]},
        {"rotations": [0, 90], "classes_per_task": 2},
        {"name": "digits", "target": "label"},
        {"name": "x", "shots": 2, "tasks": [{"name": "a", "train": "a", "train_limit": 3}]},
    ],
)
def test_what_cannot_go_together_is_refused(values):
    with pytest.raises(ConflictError, match="cannot be given together|no meaning"):
        StreamSettings.from_dict(values)


@pytest.mark.parametrize("record", [StreamSettings, TaskSettings])
def test_every_field_is_documented_under_it(record):
    body = ast.parse(inspect.getsource(record)).body[0].body
    for field, after in zip(body, body[1:], strict=False):
        if isinstance(field, ast.AnnAssign):
            text = after.value.value if isinstance(after, ast.Expr) else ""
            assert "default" in text.lower(), f"{field.target.id} is not documented with its default"


def test_the_settings_know_nothing_heavy():
    tree = ast.parse(inspect.getsource(settings_module))
    named = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    named |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert named <= {"__future__", "collections.abc", "dataclasses", "typing", "errors"}


@pytest.mark.parametrize("record", ["StreamSettings", "TaskSettings"])
def test_the_config_schema_has_the_same_keys_and_defaults(record):
    ours, theirs = vars(settings_module)[record], vars(config_module)[record]
    defaults = {field.name: field.default for field in dataclasses.fields(ours)}
    assert set(defaults) == set(theirs.model_fields)
    for name, field in theirs.model_fields.items():
        assert field.is_required() or field.default == defaults[name]
