from __future__ import annotations

import tomllib
from dataclasses import dataclass, field
from typing import Annotated, Literal

import pytest

from rankwise.config import Section, StreamSettings, TaskSettings
from rankwise.describe import as_toml, choices, comment, describe, entries, field_docs, table_doc
from rankwise.errors import UsageError


@dataclass(frozen=True)
class Under:
    """A gate's settings."""

    first: int = 1
    """One."""
    silent: int = 0


@dataclass(frozen=True)
class Over(Under):
    second: Literal["a", "b"] = "a"
    """Two,
    over lines."""
    third: tuple[int, ...] = field(default_factory=tuple)
    """Three."""


def test_docs_are_the_texts_under_the_fields_and_are_inherited() -> None:
    assert field_docs(Over) == {"first": "One.", "second": "Two,\nover lines.", "third": "Three."}


def test_choices_are_found_inside_unions() -> None:
    assert choices(Literal["x", "y"] | None) == ["x", "y"]
    assert choices(Annotated[Literal[1, 2], "note"]) == [1, 2]
    assert choices(float | None) == []


def test_entries_are_the_tables_a_list_may_hold() -> None:
    assert entries(list[TaskSettings]) == [TaskSettings]
    assert entries(Annotated[list[TaskSettings], "note"] | None) == [TaskSettings]
    assert entries(list[Annotated[StreamSettings | TaskSettings, "note"]]) == [StreamSettings, TaskSettings]
    assert entries(list[str]) == []


def test_a_table_is_named_without_its_key() -> None:
    class Keyed(Section):
        """`[x]`: the thing."""

    assert table_doc(Keyed) == "The thing."
    assert table_doc(StreamSettings) == "Which tasks are learnt, in which order, from which rows."


def test_comments_are_filled_unless_their_layout_means_something() -> None:
    assert comment("a\nb\n\nc") == "# a b\n# c"
    assert comment("a\n    b\n\nc", wrap=False) == "# a\n#     b\n#\n# c"
    assert all(len(line) <= 100 for line in comment("word " * 100, "#     ").splitlines())


def test_lists_of_tables_without_entries_show_what_one_may_hold() -> None:
    description = describe("lora")
    shown = {setting.key for group in description.groups if not group.given for setting in group.settings}
    assert shown >= {"strategy[].kind", "strategy[].size"}
    text = as_toml(description)
    assert "\n# [[strategy]]\n" in text
    assert "strategy" not in tomllib.loads(text)


def test_unknown_method() -> None:
    with pytest.raises(UsageError, match="'lora'"):
        describe("lroa")
