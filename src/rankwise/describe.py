"""A method in full: its record, its update rule, and its config with every key and the meaning of each.

Nothing is written twice: meanings are the texts under the fields, of the schema and of the method's gate.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import tomlkit
from pydantic import TypeAdapter
from pydantic_core import PydanticUndefined

from rankwise import api, papers
from rankwise.config import Config, Section
from rankwise.learning.recipe import Method
from rankwise.strategies import STRATEGIES

WIDTH = 100
"""Characters a line of comment."""


PARTS = ("adapter.gate", "adapter.form", "adapter.dynamics", "strategy")
"""Tables whose keys depend on the method."""


@dataclass(frozen=True)
class Setting:
    """One key of a config."""

    key: str
    """Its place, as --set takes it; `[]` stands for each entry of a list of tables."""
    value: Any
    """Its value for the method; None where it is not set."""
    choices: list[Any]
    """The values it may have, where they can be counted."""
    doc: str
    """Meaning, unit, when to raise it."""


@dataclass(frozen=True)
class Group:
    """One table of a config."""

    key: str
    """Its dotted name; empty for the keys at the top."""
    doc: str
    settings: tuple[Setting, ...]
    repeats: bool = False
    """One entry of a list of tables."""
    given: bool = True
    """False: the list has no entry; this shows what one may hold."""


@dataclass(frozen=True)
class Description:
    """What there is to say about a method."""

    record: dict[str, Any]
    docstring: str
    """Of the method's file."""
    config: Config
    groups: tuple[Group, ...]


def describe(slug: str) -> Description:
    """Describe the method called `slug`, with its defaults filled in. Raises UsageError for an unknown name."""
    config, method = api.resolve({"method": slug})
    return Description(method.record(), docstring(method), config, tuple(groups(config, method)))


def docstring(method: Method) -> str:
    """Return the docstring of the method's file; of its gate, if it comes from another package."""
    stem = Path(papers.__file__).parent / method.slug.replace("-", "_")
    files = [file for file in (stem.with_suffix(".py"), stem / "__init__.py") if file.is_file()]
    written = ast.get_docstring(ast.parse(files[0].read_text(encoding="utf-8"))) if files else None
    return written or inspect.getdoc(method.gate) or method.title


def groups(config: Config, method: Method) -> Iterator[Group]:
    """Yield every table of the config, in its order; lists of tables without an entry show what an entry may hold."""
    yield Group("", "", tuple(_plain_settings(config, "")))
    for name, value in config:
        if isinstance(value, Section):
            yield Group(name, table_doc(type(value)), tuple(_plain_settings(value, name)))
            yield from adapter_groups(config, method) if name == "adapter" else ()
            yield from _lists(value, name)
    for entry in config.strategy:
        yield part_group("strategy[]", entry)
    given = [entry["kind"] for entry in config.strategy]
    for name, part in STRATEGIES.items():
        if name not in given:
            yield replace(part_group("strategy[]", {"kind": name, **asdict(part.Settings())}), given=False)


def adapter_groups(config: Config, method: Method) -> Iterator[Group]:
    """Yield the tables of the parts an adapter is made of: gate, form, dynamics."""
    adapter = config.adapter
    gate = tuple(record_settings(method.gate, adapter.gate, "adapter.gate"))
    yield Group("adapter.gate", inspect.getdoc(method.gate) or "", gate, repeats=False)
    form = tuple(record_settings(method.form, adapter.form, "adapter.form"))
    yield Group("adapter.form", inspect.getdoc(method.form) or "", form)
    if adapter.dynamics:
        yield part_group("adapter.dynamics", adapter.dynamics)


def part_group(place: str, values: Mapping[str, Any]) -> Group:
    """Return the table of one part of a run, from its complete settings."""
    part = api.part_of(values["kind"])
    kind = Setting(f"{place}.kind", values["kind"], [], "The part.")
    found = tuple(record_settings(part.Settings, values, place))
    text = inspect.getdoc(part) or ""
    return Group(place.removesuffix("[]"), text, (kind, *found), repeats=place.endswith("[]"))


def record_settings(kind: type, values: Mapping[str, Any], place: str) -> Iterator[Setting]:
    """Yield the settings of a part that are in `values`, with the meaning under each field of the class `kind`."""
    if not is_dataclass(kind):
        return
    hints, docs = get_type_hints(kind), field_docs(kind)
    for name in (field.name for field in fields(kind)):
        if name in values:
            yield Setting(f"{place}.{name}", values[name], choices(hints[name]), docs.get(name, ""))


def field_docs(kind: type) -> dict[str, str]:
    """Return the text under each field of a class and its bases, read from their source."""
    found: dict[str, str] = {}
    for part in reversed(kind.__mro__):
        if is_dataclass(part):
            tree = ast.parse(textwrap.dedent(inspect.getsource(part)))
            found |= dict(_documented(tree.body[0]))
    return found


def _documented(node: ast.stmt) -> Iterator[tuple[str, str]]:
    for field, text in pairwise(node.body if isinstance(node, ast.ClassDef) else ()):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            yield ast.unparse(field.target), inspect.cleandoc(str(text.value.value))


def choices(annotation: Any) -> list[Any]:
    """Return the values a type allows, or none where they cannot be counted.

    >>> choices(Literal["a", "b"] | None), choices(bool), choices(int)
    (['a', 'b'], [True, False], [])
    """
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    if annotation is bool:
        return [True, False]
    return [value for part in get_args(annotation) for value in choices(part)]


def table_doc(kind: type[Section]) -> str:
    """Return what a table is, without the name of its key."""
    text = " ".join((inspect.getdoc(kind) or "").split())
    text = text.partition(": ")[2] if text.startswith("`") else text
    return text[:1].upper() + text[1:]


def entries(annotation: Any) -> list[type[Section]]:
    """Return the kinds of table that a list may hold."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [kind for part in get_args(annotation) for kind in entries(part)]


def _plain_settings(section: Section, key: str) -> Iterator[Setting]:
    """Yield the keys of a table that are no tables themselves."""
    for name, field in type(section).model_fields.items():
        if not entries(field.annotation) and _dotted(key, name) not in PARTS:
            yield Setting(
                _dotted(key, name), getattr(section, name), choices(field.annotation), field.description or ""
            )


def _lists(section: Section, key: str) -> Iterator[Group]:
    """Yield the lists of tables in a table: an example of each kind, then the entries that are given."""
    for name, field in type(section).model_fields.items():
        kinds, value = entries(field.annotation), getattr(section, name)
        if not kinds or isinstance(value, Section):
            continue
        place = _dotted(key, name)
        for entry in value or ():
            yield Group(place, field.description or "", tuple(_plain_settings(entry, f"{place}[]")), repeats=True)
        for kind in kinds:
            if not any(type(entry) is kind for entry in value or ()):
                yield Group(place, table_doc(kind), tuple(_examples(kind, f"{place}[]")), repeats=True, given=False)


def _examples(kind: type[Section], key: str) -> Iterator[Setting]:
    for name, field in kind.model_fields.items():
        value = None if field.default is PydanticUndefined else field.default
        yield Setting(_dotted(key, name), value, choices(field.annotation), field.description or "")


def _dotted(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name


def as_json(description: Description) -> dict[str, Any]:
    """Return the description as JSON values."""
    given = [setting for group in description.groups if group.given for setting in group.settings]
    return {
        **description.record,
        "docstring": description.docstring,
        "config": description.config.model_dump(),
        "settings": [asdict(setting) for setting in given],
    }


def as_toml(description: Description) -> str:
    """Return the description as TOML that runs as it stands: all but the config is comment."""
    parts = [comment(_facts(description.record)), comment(description.docstring, wrap=False)]
    parts += [_group_toml(group) for group in description.groups]
    return "\n\n".join(part for part in parts if part)


def _facts(record: Mapping[str, Any]) -> str:
    facts = [f"{record['slug']}: {record['title']}"]
    facts += [f"{key}: {_said(value)}" for key, value in record.items() if key not in ("slug", "title")]
    return "\n\n".join(facts)


def _said(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "; ".join(map(str, value)) or "nothing" if isinstance(value, list) else str(value or "none")


def _group_toml(group: Group) -> str:
    name = f"[[{group.key}]]" if group.repeats else f"[{group.key}]"
    if not group.settings:
        return ""
    lines = [] if not group.key else [name if group.given else f"# {name}"]
    lines += [comment(group.doc, wrap=group.key not in PARTS)] if group.doc else []
    for setting in group.settings:
        lines += [_line(setting, group.given), *_meaning(setting)]
    return "\n".join(lines)


def _line(setting: Setting, given: bool) -> str:
    key = setting.key.rpartition(".")[2]
    if setting.value is None:
        return f"# {key} is not set"
    return f"{'' if given else '# '}{key} = {tomlkit.item(setting.value).as_string()}"


def _meaning(setting: Setting) -> Iterator[str]:
    if setting.doc:
        yield comment(setting.doc, "#     ")
    if len(setting.choices) > 1 and setting.choices != [True, False]:
        yield comment(f"Choices: {', '.join(map(str, setting.choices))}.", "#     ")


def comment(text: str, mark: str = "# ", *, wrap: bool = True) -> str:
    r"""Return text as lines of comment; paragraphs are filled to WIDTH unless their layout means something.

    >>> print(comment("One\nline.\n\nAnother."))
    # One line.
    # Another.
    """
    paragraphs = [" ".join(part.split()) for part in text.split("\n\n")] if wrap else []
    lines = (
        [line for part in paragraphs for line in textwrap.wrap(part, WIDTH - len(mark))] if wrap else text.splitlines()
    )
    return "\n".join(f"{mark}{line}".rstrip() for line in lines)


def config_schema() -> dict[str, Any]:
    """Return the JSON Schema of a config, with the settings of every strategy there is."""
    schema = Config.model_json_schema()
    kinds = []
    for name, part in STRATEGIES.items():
        one = TypeAdapter(part.Settings).json_schema()
        meanings = field_docs(part.Settings)
        for key, value in one["properties"].items():
            value["description"] = meanings.get(key, "")
        kinds.append({**one, "properties": {"kind": {"const": name}, **one["properties"]}, "required": ["kind"]})
    schema["properties"]["strategy"]["items"] = {"anyOf": [*kinds, {"type": "object", "required": ["kind"]}]}
    return schema
