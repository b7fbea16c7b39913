"""The `[stream]` table of a config, as a frozen record. Light on purpose: checking a config must not load torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from ..errors import ConflictError, UsageError, nearest

Kind = Literal["class-incremental", "task-incremental", "domain-incremental", "cross-domain"]
Order = Literal["seed", "given"]
Columns = str | tuple[str, str]

KINDS: tuple[Kind, ...] = ("class-incremental", "task-incremental", "domain-incremental", "cross-domain")
ORDERS: tuple[Order, ...] = ("seed", "given")
BUILT_IN: tuple[str, ...] = ("digits",)


@dataclass(frozen=True)
class TaskSettings:
    """One entry of `tasks`: a data set that is a task of its own. What is left out is taken from the stream's
    settings."""

    name: str
    """The task's name in tables and in R; names must differ. No default."""
    train: str
    """Training rows: a file, a folder, `hub:org/name[:config]` or `memory:name`; relative to the config's folder. No
    default."""
    test: str | None = None
    """Test rows, likewise. Default: the test part of `train` where it has one, else a fixed stratified cut of 20 %."""
    input: Columns | None = None
    """Column of the input, or two columns for pairs of texts. Default: the stream's."""
    target: str | None = None
    """Column of the label. Default: the stream's."""
    split: str | None = None
    """Column that says train or test. Default: the stream's."""
    train_limit: int | None = None
    """At most so many training rows, spread evenly over classes. Default: the stream's."""
    test_limit: int | None = None
    """At most so many test rows, spread evenly over classes. Default: the stream's."""


@dataclass(frozen=True)
class StreamSettings:
    """Which tasks are learnt, in which order, from which rows."""

    name: str = "digits"
    """A built-in stream (`digits`) or, with `train` or `tasks`, your own label for the stream. Default: digits."""
    kind: Kind | None = None
    """How rows become tasks: class-incremental (new classes, ranked among all seen), task-incremental (new classes,
    ranked within the task), domain-incremental (the same classes, new inputs), cross-domain (new data sets, classes
    side by side). Default: class-incremental for one data set; for `tasks`, domain-incremental if all label sets are
    equal, else cross-domain; domain-incremental with `rotations`."""
    train: str | None = None
    """Training rows of one data set: .jsonl, .csv, .parquet, .npz, an image folder, a saved data set folder,
    `hub:org/name[:config]` or `memory:name`; relative to the config's folder. Default: none (a built-in stream)."""
    test: str | None = None
    """Test rows, likewise. Default: the test part of `train` where it has one, else a fixed stratified cut of 20 %."""
    input: Columns | None = None
    """Column of the input, or two columns for pairs of texts. Default: the first of input, text, sentence, image."""
    target: str | None = None
    """Column of the label (text or whole numbers). Default: the first of target, class_name, label."""
    split: str | None = None
    """Column whose value says train or test. Default: the column `split` where there is one."""
    classes_per_task: int | None = None
    """Classes a task (count, at least 1); the last task takes what is left. Default: 2 unless groups or group_by is
    given."""
    groups: tuple[tuple[str, ...], ...] | None = None
    """Class names of each task, written out; every class in exactly one group. Default: none."""
    group_by: str | None = None
    """Column (or npz array, one value a row or a class) whose values make the tasks. Default: none."""
    rotations: tuple[float, ...] | None = None
    """Angles in degrees, counter-clockwise, one task an angle (domain-incremental, images only). Default: none."""
    tasks: tuple[TaskSettings, ...] | None = None
    """Data sets that are tasks, in order. Default: none (one data set, divided)."""
    validation: float | int = 0.2
    """Rows set aside from training, stratified by class: a fraction in (0, 1) or a count per task; 0 for none. Test
    rows never pick anything, so without validation nothing is picked. Default: 0.2."""
    train_limit: int | None = None
    """At most so many training rows a task (validation not counted), spread evenly over classes. Default: no limit."""
    test_limit: int | None = None
    """At most so many test rows a task, spread evenly over classes. Default: no limit."""
    shots: int | None = None
    """Exactly so many training rows a class (16 in the few-shot protocols); not together with train_limit. Default:
    all."""
    order: Order | None = None
    """Order of classes, groups or tasks: drawn by the seed, or as given. Default: seed for one data set, given for
    `tasks`, `groups` and `rotations`."""

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, source: str = "config") -> StreamSettings:
        """Check a plain mapping; None means left out. Raises UsageError naming `source`, key, value and the remedy."""
        settings = _record(cls, values, _STREAM, f"{source}, [stream]")
        _check_together(settings, source)
        return settings


R = TypeVar("R")
Check = Callable[[Any, str], Any]


def _record(kind: type[R], values: Mapping[str, Any], checks: Mapping[str, Check], where: str) -> R:
    if not isinstance(values, Mapping):
        raise UsageError(f"{where}: expected a table of keys, got {type(values).__name__}")
    for key in values:
        if key not in checks:
            raise UsageError(f"{where}: unknown key '{key}'; {nearest(str(key), checks)}")
    given = {key: checks[key](value, f"{where}: {key}") for key, value in values.items() if value is not None}
    required = [f.name for f in dataclasses.fields(kind) if f.default is dataclasses.MISSING]  # type: ignore[arg-type]
    for key in required:
        if key not in given:
            raise UsageError(f"{where}: '{key}' is missing; add {key} = ...")
    return kind(**given)


def _wrong(where: str, value: object, wanted: str) -> UsageError:
    return UsageError(f"{where} = {value!r} is not {wanted}; write {wanted}")


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value:
        raise _wrong(where, value, "a non-empty text")
    return value


def _count(value: Any, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise _wrong(where, value, "a whole number of at least 1")
    return value


def _share(value: Any, where: str) -> float | int:
    whole = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    if not whole and not (isinstance(value, float) and 0 <= value < 1):
        raise _wrong(where, value, "a fraction from 0 up to (not including) 1, or a whole number of rows")
    return value


def _columns(value: Any, where: str) -> Columns:
    if isinstance(value, str):
        return _text(value, where)
    names = [_text(name, where) for name in _listed(value, where)]
    if len(names) != 2:
        raise _wrong(where, value, "one column name or a list of two")
    return names[0], names[1]


def _listed(value: Any, where: str) -> Sequence[Any]:
    if isinstance(value, str) or not isinstance(value, Sequence) or not value:
        raise _wrong(where, value, "a non-empty list")
    return value


def _angle(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not -360 <= value <= 360:
        raise _wrong(where, value, "an angle in degrees from -360 to 360")
    return float(value)


def _choice(choices: Sequence[str]) -> Check:
    def check(value: Any, where: str) -> str:
        if value not in choices:
            raise UsageError(f"{where} = {value!r} is unknown; {nearest(str(value), choices)}")
        return value

    return check


def _groups(value: Any, where: str) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(str(name) for name in _listed(group, where)) for group in _listed(value, where))


def _tasks(value: Any, where: str) -> tuple[TaskSettings, ...]:
    return tuple(
        task if isinstance(task, TaskSettings) else _record(TaskSettings, task, _TASK, f"{where}[{i}]")
        for i, task in enumerate(_listed(value, where))
    )


def _angles(value: Any, where: str) -> tuple[float, ...]:
    return tuple(_angle(angle, where) for angle in _listed(value, where))


_TASK: dict[str, Check] = {
    "name": _text,
    "train": _text,
    "test": _text,
    "input": _columns,
    "target": _text,
    "split": _text,
    "train_limit": _count,
    "test_limit": _count,
}
_STREAM: dict[str, Check] = {
    **_TASK,
    "kind": _choice(KINDS),
    "classes_per_task": _count,
    "groups": _groups,
    "group_by": _text,
    "rotations": _angles,
    "tasks": _tasks,
    "validation": _share,
    "shots": _count,
    "order": _choice(ORDERS),
}


def _check_together(settings: StreamSettings, source: str) -> None:
    pairs = [
        ("shots", "train_limit"),
        ("tasks", "train"),
        ("tasks", "test"),
        ("tasks", "rotations"),
        ("tasks", "group_by"),
    ]
    pairs += [
        ("tasks", "classes_per_task"),
        ("tasks", "groups"),
        ("rotations", "classes_per_task"),
        ("rotations", "group_by"),
    ]
    pairs += [
        ("classes_per_task", "group_by"),
        ("classes_per_task", "groups"),
        ("groups", "group_by"),
        ("rotations", "groups"),
    ]
    given = {f.name for f in dataclasses.fields(settings) if getattr(settings, f.name) is not None}
    for one, other in pairs:
        if {one, other} <= given:
            raise ConflictError(
                f"{source}, [stream]: '{one}' and '{other}' cannot be given together; remove one of them"
            )
    if settings.shots and any(task.train_limit for task in settings.tasks or ()):
        raise ConflictError(
            f"{source}, [stream]: 'shots' and a task's 'train_limit' cannot be given together; remove one"
        )
    if settings.train is None and settings.tasks is None:
        _check_built_in(settings, source)


def _check_built_in(settings: StreamSettings, source: str) -> None:
    if settings.name not in BUILT_IN:
        raise UsageError(
            f"{source}, [stream]: name = '{settings.name}' is no built-in stream; {nearest(settings.name, BUILT_IN)}; "
            'or say where the rows are with train = "..." or tasks = [...]'
        )
    for key in ("test", "input", "target", "split"):
        if getattr(settings, key) is not None:
            raise ConflictError(
                f"{source}, [stream]: '{key}' has no meaning for the built-in '{settings.name}'; add train or drop it"
            )
