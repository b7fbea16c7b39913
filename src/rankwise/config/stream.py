"""The `[stream]` table: which tasks are learnt, in which order, from which rows."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePath
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from rankwise.config.numbers import Count, Fraction
from rankwise.config.section import Section
from rankwise.errors import nearest

Kind = Literal["class-incremental", "task-incremental", "domain-incremental", "cross-domain", "instruction"]
Order = Literal["seed", "given"]
Columns = str | Annotated[list[str], Field(min_length=2, max_length=2)]
Angle = Annotated[float, Field(ge=-360, le=360)]

BUILT_IN: tuple[str, ...] = ("digits",)
UNNAMED = "stream"
ENDINGS = (".jsonl", ".csv", ".tsv", ".parquet", ".npz")
"""Of the files that rows are read from."""

APART = (
    ("shots", "train_limit"),
    ("tasks", "train"),
    ("tasks", "test"),
    ("tasks", "rotations"),
    ("tasks", "group_by"),
    ("tasks", "classes_per_task"),
    ("tasks", "groups"),
    ("rotations", "classes_per_task"),
    ("rotations", "group_by"),
    ("rotations", "groups"),
    ("classes_per_task", "group_by"),
    ("classes_per_task", "groups"),
    ("groups", "group_by"),
)
"""Keys of which at most one may be given: they say the same thing twice, or contradict each other."""


class TaskSettings(Section):
    """One entry of `tasks`: a data set that is a task of its own. What is left out is taken from the stream."""

    name: str = Field(min_length=1)
    """The task's name in tables and in R; names must differ."""
    train: str
    """Training rows: a file, a folder, `hub:org/name[:config]` or `memory:name`; relative to the config's folder."""
    test: str | None = None
    """Test rows, likewise. Default: the test part of `train` where it has one, else a fixed stratified cut of 20 %."""
    input: Columns | None = None
    """Column of the input, or two columns for pairs of texts. Default: the stream's."""
    target: str | None = None
    """Column of the label. Default: the stream's."""
    split: str | None = None
    """Column that says train or test. Default: the stream's."""
    prompt: str | None = None
    """Template of a prompt, for kind = "instruction". Default: the stream's."""
    train_limit: Count | None = None
    """At most so many training rows, spread evenly over classes. Default: the stream's."""
    test_limit: Count | None = None
    """At most so many test rows, spread evenly over classes. Default: the stream's."""


class StreamSettings(Section):
    """Which tasks are learnt, in which order, from which rows."""

    name: str = Field(default="digits", min_length=1)
    """A built-in stream (`digits`) or, with `train` or `tasks`, your own label for the stream. Default: digits without
    them; else the name, without its ending, of the file or folder of `train` or of a single task's, or stream."""
    kind: Kind | None = None
    """How rows become tasks: class-incremental (new classes, ranked among all seen), task-incremental (new classes,
    ranked within the task), domain-incremental (the same classes, new inputs), cross-domain (data sets side by side),
    instruction (data sets side by side whose targets are texts to write, for objective.kind = "language").
    Default: class-incremental for one data set; for `tasks`, domain-incremental if all label sets are equal, else
    cross-domain; domain-incremental with `rotations`."""
    train: str | None = None
    """Training rows of one data set: .jsonl, .csv, .tsv, .parquet, .npz, an image folder, a saved data set folder,
    `hub:org/name[:config]` or `memory:name`; relative to the config's folder. Default: none (a built-in stream)."""
    test: str | None = None
    """Test rows, likewise. Default: the test part of `train` where it has one, else a fixed stratified cut of 20 %."""
    input: Columns | None = None
    """Column of the input, or two columns for pairs of texts. Default: the first of input, text, sentence, image."""
    target: str | None = None
    """Column of the label (text or whole numbers). Default: the first of target, class_name, label."""
    split: str | None = None
    """Column whose value says train or test. Default: the column `split` where there is one."""
    prompt: str | None = None
    """Template of a prompt, for kind = "instruction": {column} becomes the row's text in that input column, {options}
    the task's answers where they are few. Default: the input itself."""
    classes_per_task: Count | None = None
    """Classes a task; the last task takes what is left. Default: 2 unless groups or group_by is given."""
    groups: list[list[str]] | None = None
    """Class names of each task, written out; every class in exactly one group."""
    group_by: str | None = None
    """Column (or npz array, one value a row or a class) whose values make the tasks."""
    rotations: list[Angle] | None = None
    """Angles in degrees, counter-clockwise, one task an angle (domain-incremental, images only)."""
    tasks: Annotated[list[TaskSettings], Field(min_length=1)] | None = None
    """Data sets that are tasks, in order."""
    validation: Annotated[int, Field(ge=0)] | Fraction = 0.2
    """Rows set aside from training, stratified by class: a fraction, or a count for each task; 0 for none. Test rows
    never pick anything, so without validation nothing is picked."""
    train_limit: Count | None = None
    """At most so many training rows a task (validation not counted), spread evenly over classes."""
    test_limit: Count | None = None
    """At most so many test rows a task, spread evenly over classes."""
    shots: Count | None = None
    """Exactly so many training rows a class (16 in the few-shot protocols); not together with train_limit."""
    first_tasks: Count | None = None
    """Only the first so many tasks of the stream. Default: all."""
    order: Order | None = None
    """Order of classes, groups or tasks: drawn by the seed, or as given. Default: seed for one data set, given for
    `tasks`, `groups` and `rotations`."""

    @model_validator(mode="before")
    @classmethod
    def _named(cls, values: Any) -> Any:
        """Name the stream after its data where nobody did: first of all, so that whatever is recorded has the name."""
        nameless = isinstance(values, Mapping) and "name" not in values
        own = nameless and (values.get("train") is not None or values.get("tasks") is not None)
        return {**values, "name": _name_of(values)} if own else values

    @model_validator(mode="after")
    def _together(self) -> StreamSettings:
        given = {key for key in type(self).model_fields if getattr(self, key) is not None}
        for one, other in APART:
            if {one, other} <= given:
                raise ValueError(f"'{one}' and '{other}' cannot be given together; remove one of them")
        if self.kind != "instruction" and (self.prompt or any(task.prompt for task in self.tasks or ())):
            raise ValueError("'prompt' needs kind = \"instruction\"; set it, or remove the prompt")
        divided = sorted({"classes_per_task", "groups", "rotations"} & given) if self.kind == "instruction" else []
        if divided:
            raise ValueError(f"'{divided[0]}' divides classes, which kind = \"instruction\" has none of; remove it")
        if self.shots and any(task.train_limit for task in self.tasks or ()):
            raise ValueError("'shots' and a task's 'train_limit' cannot be given together; remove one of them")
        return self._built_in() if self.train is None and self.tasks is None else self

    def _built_in(self) -> StreamSettings:
        if self.name not in BUILT_IN:
            raise ValueError(
                f"name = '{self.name}' is no built-in stream; {nearest(self.name, BUILT_IN)}; "
                "or say where the rows are with train or tasks"
            )
        for key in ("test", "input", "target", "split", "prompt"):
            if getattr(self, key) is not None:
                raise ValueError(f"'{key}' has no meaning for the built-in '{self.name}'; add train or drop it")
        return self


def _name_of(stream: Mapping[str, Any]) -> str:
    """Return a name for a stream of `train` or one task: the stem of its file or folder, or the hub's or memory's."""
    match stream:
        case {"train": str(source)} | {"tasks": [{"train": str(source)}]}:
            remote = re.fullmatch(r"(?:hub|memory):(?:.*/)?([^/:]*)(?::.*)?", source)
            name = remote[1] if remote else PurePath(source).stem
            return name if re.search(r"\w", name) else UNNAMED
    return UNNAMED
