"""Read a config: file, overrides, schema; every fault in one error that names file, key, value and remedy."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar, cast, get_args

import tomlkit
from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from rankwise.config.schema import Config
from rankwise.errors import UsageError, nearest

S = TypeVar("S", bound=BaseModel)
R = TypeVar("R")


def read_config(source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Return the raw table of a TOML file (or a mapping) with `key=value` overrides laid over it, unchecked."""
    raw = _read_toml(Path(source)) if isinstance(source, str | Path) else _plain(source)
    for override in overrides:
        raw = merged(raw, _override(override))
    return raw


def load_config(source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> Config:
    """Read and check a config; see `read_config` and `parse`."""
    return parse(Config, read_config(source, overrides), str(source) if isinstance(source, str | Path) else "config")


def parse(kind: type[S], values: Mapping[str, Any], where: str) -> S:
    """Check `values` against a schema, or raise UsageError with one line for each fault, naming `where`."""
    try:
        return kind.model_validate(_plain(values))
    except ValidationError as error:
        raise UsageError("\n".join(_explain(kind, fault, where) for fault in error.errors())) from None


def parse_record(make: type[R], values: Mapping[str, Any], where: str) -> R:
    """Make a frozen dataclass from `values`, checking keys and types as for a table; see `parse`."""
    known = {field.name for field in fields(cast(Any, make))}
    for key in values:
        if key not in known:
            raise UsageError(f"{where}: unknown key {key!r}; {nearest(key, known)}")
    try:
        return TypeAdapter(make).validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        lines = [f"{where}.{'.'.join(map(str, e['loc']))} = {e['input']!r}: {_lower(e['msg'])}" for e in error.errors()]
        raise UsageError("\n".join(lines)) from None


def merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Lay table `over` on table `under`, key by key, tables within tables."""
    result = dict(under)
    for key, value in over.items():
        below = result.get(key)
        result[key] = merged(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return result


def to_toml(config: BaseModel) -> str:
    """Write a config as TOML that reads back equal; keys that are not set are left out."""
    return tomlkit.dumps(config.model_dump(exclude_none=True))


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        beside = [p.name for p in path.parent.glob("*.toml")] if path.parent.is_dir() else []
        remedy = nearest(path.name, beside) if beside else "no .toml file lies in that folder"
        raise UsageError(f"{path}: no such config file; {remedy}") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{path}: cannot be read as TOML: {error}") from None


def _override(text: str) -> dict[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise UsageError(f"--set {text!r}: write key=value, as in train.lr=0.001")
    try:
        parsed: Any = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value
    for word in reversed(key.strip().split(".")):
        parsed = {word: parsed}
    return parsed


def _plain(value: Any) -> Any:
    """Turn mappings and sequences into dicts and lists, which is what strict checking takes."""
    if isinstance(value, BaseModel):
        return value.model_dump()
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _explain(kind: type[BaseModel], fault: ErrorDetails, where: str) -> str:
    words = [word for i, word in enumerate(fault["loc"]) if not _is_branch(word) and not _is_tag(fault["loc"], i)]
    path = ".".join(str(word) for word in words)
    if fault["type"] == "extra_forbidden":
        *table, key = fault["loc"]
        return f"{where}: unknown key {path!r}; {nearest(str(key), _fields(kind, table))}"
    if fault["type"] == "union_tag_invalid":
        found, known = fault.get("ctx", {})["tag"], fault.get("ctx", {})["expected_tags"].replace("'", "").split(", ")
        return f"{where}: {path}.kind = {found!r}: no such kind; {nearest(found, known)}"
    if fault["type"] == "missing":
        return f"{where}: {path!r} is missing; add {words[-1]} = ..."
    if fault["type"] == "value_error":
        return ": ".join(word for word in (where, path, str(fault.get("ctx", {}).get("error", fault["msg"]))) if word)
    return f"{where}: {path} = {fault['input']!r}: {_lower(fault['msg'])}{_hint(fault)}"


def _is_branch(word: str | int) -> bool:
    """Say whether a part of a location names a member of a union rather than a key."""
    return isinstance(word, str) and (word in ("str", "int", "float") or "[" in word or word.startswith("constrained-"))


def _is_tag(place: Sequence[str | int], i: int) -> bool:
    """Say whether part `i` of a location names the kind of a table that has several."""
    return place[0] == "objective" and i == 1 and len(place) > 2


def _lower(message: str) -> str:
    return message[:1].lower() + message[1:]


def _hint(fault: ErrorDetails) -> str:
    if fault["type"] != "literal_error" or not isinstance(fault["input"], str):
        return ""
    expected = str(fault.get("ctx", {}).get("expected", ""))
    return f"; {nearest(fault['input'], expected.replace(' or ', ', ').replace(chr(39), '').split(', '))}"


def _fields(kind: type[BaseModel], table: Sequence[str | int]) -> list[str]:
    """Return the keys of the table at a location inside the schema."""
    sections = [kind]
    for word in table:
        if word in sections[0].model_fields:
            sections = _sections(sections[0].model_fields[str(word)].annotation) or sections
        else:  # the kind of a table that has several, or a place in a list
            sections = [
                s for s in sections if "kind" in s.model_fields and s.model_fields["kind"].default == word
            ] or sections
    return list(sections[0].model_fields)


def _sections(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for part in get_args(annotation) for found in _sections(part)]
