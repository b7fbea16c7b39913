"""Read a config: file, overrides, schema; every fault in one error that names file, key, value and remedy."""

from __future__ import annotations

import functools
import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar, cast, get_args

import tomlkit
from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from rankwise.config.schema import Config
from rankwise.config.words import ours
from rankwise.errors import SECRET, UsageError, nearest
from rankwise.files import remedy

MAX_CONFIG = 1 << 20
"""Bytes of a config at most; a complete one has two thousand."""
MOST = 20
"""Faults named in one error."""
DEEPEST, LONGEST_KEY = 16, 200
"""Tables within tables, and words of a dotted key, at most."""

S = TypeVar("S", bound=BaseModel)
R = TypeVar("R")


def read_config(source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Return the raw table of a TOML file (or a mapping) with `key=value` overrides laid over it, unchecked."""
    where = str(source) if isinstance(source, str | Path) else "config"
    raw = _read_toml(Path(source)) if isinstance(source, str | Path) else source
    for table in (raw, *(parts := [_override(override) for override in overrides])):
        _refuse_deep(table, where)
    return functools.reduce(merged, parts, _plain(raw))


def load_config(source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> Config:
    """Read and check a config; see `read_config` and `parse`."""
    return parse(Config, read_config(source, overrides), str(source) if isinstance(source, str | Path) else "config")


def parse(kind: type[S], values: Mapping[str, Any], where: str) -> S:
    """Check `values` against a schema, or raise UsageError with one line for each fault, naming `where`.

    A token or password among them is refused too: a config is written to the run's folder, and stays there.
    """
    plain = _plain(values)
    _refuse_secrets(plain, where)
    try:
        return kind.model_validate(plain)
    except ValidationError as error:
        faults = _together(error.errors())
        more = [f"{where}: and {len(faults) - MOST} more"] if len(faults) > MOST else []
        raise UsageError("\n".join([_explain(kind, fault, where) for fault in faults[:MOST]] + more)) from None


def parse_record(make: type[R], values: Mapping[str, Any], where: str) -> R:
    """Make a frozen dataclass from `values`, checking keys and types as for a table; see `parse`."""
    known = {field.name for field in fields(cast(Any, make))}
    for key in values:
        if key not in known:
            raise UsageError(f"{where}: unknown key {key!r}; {nearest(key, known)}")
    try:
        return TypeAdapter(make).validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        raise UsageError("\n".join(_refused(fault, where) for fault in _together(error.errors()))) from None


def _together(faults: Sequence[ErrorDetails]) -> list[ErrorDetails]:
    """Return the faults of one value, which are those of the branches of a union, as one: what it may be."""
    first: dict[tuple[str | int, ...], ErrorDetails] = {}
    for fault in faults:
        known = first.setdefault(tuple(word for word in fault["loc"] if not _is_branch(word)), fault)
        if fault["msg"] not in known["msg"]:
            known["msg"] += f" or {fault['msg'].removeprefix('Input should be ')}"
    return list(first.values())


def _refused(fault: ErrorDetails, where: str) -> str:
    """Say what is wrong with one value of a record."""
    place = ".".join(str(word) for word in (where, *fault["loc"]) if not _is_branch(word))
    return f"{place} = {_shown(fault['input'])}: {_lower(fault['msg'])}{_hint(fault)}"


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
        with path.open("rb") as file:
            data = file.read(MAX_CONFIG + 1)
        if len(data) > MAX_CONFIG:
            raise UsageError(f"{path}: is larger than the {MAX_CONFIG} bytes a config may have; name the right file")
        return tomllib.loads(_shallow(data.decode("utf-8"), path))
    except RecursionError:
        raise UsageError(f"{path}: cannot be read as TOML: it is nested too deeply") from None
    except FileNotFoundError:
        beside = [p.name for p in path.parent.glob("*.toml")] if path.parent.is_dir() else []
        near = nearest(path.name, beside) if beside else "no .toml file lies in that folder"
        raise UsageError(f"{path}: no such config file; {near}") from None
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror or error}; {remedy(error)}") from None
    except ValueError as error:  # TOML or UTF-8 that is none, numbers of thousands of digits
        raise UsageError(f"{path}: cannot be read as TOML: {error}") from None


def _override(text: str) -> dict[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise UsageError(f"--set {_shown(text)}: write key=value, as in train.lr=0.001")
    try:
        parsed: Any = tomllib.loads(f"value = {value}")["value"]
    except (ValueError, RecursionError):
        parsed = value
    for word in reversed(key.strip().split(".")):
        parsed = {word: parsed}
    return parsed


def _shallow(text: str, path: Path) -> str:
    """Return `text` unless it has a key of hundreds of words, over which the parser's time and memory grow squared."""
    for number, line in enumerate(text.splitlines(), start=1):
        if line.partition("=")[0].count(".") > LONGEST_KEY and not line.lstrip().startswith("#"):
            raise UsageError(f"{path}, line {number}: over {LONGEST_KEY} dots before the value; no key has so many")
    return text


def _refuse_deep(raw: Any, where: str) -> None:
    """Raise UsageError if tables and lists lie deeper in each other than any config needs; it runs level by level."""
    level = [raw]
    for _ in range(DEEPEST):
        held = [value.values() if isinstance(value, Mapping) else value for value in level]
        found = [inner for values in held for inner in values]
        if any(type(number) is int and number.bit_length() > 63 for number in found):
            raise UsageError(f"{where}: holds a whole number of more than 63 bits, which TOML has none of; correct it")
        level = [inner for inner in found if isinstance(inner, Mapping | list | tuple)]
        if not level:
            return
    raise UsageError(f"{where}: is nested more than {DEEPEST} deep; no key of a config is")


def _plain(value: Any) -> Any:
    """Turn mappings and sequences into dicts and lists, which is what strict checking takes."""
    if isinstance(value, BaseModel):
        return value.model_dump()
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _refuse_secrets(value: Any, where: str, place: str = "") -> None:
    """Raise UsageError, without showing it, if there is a text in `value` that holds a token or a password."""
    if isinstance(value, dict):
        for key, held in value.items():
            _refuse_secrets(key, where, place or "a key")
            _refuse_secrets(held, where, f"{place}.{key}" if place else str(key))
    elif isinstance(value, list):
        for number, held in enumerate(value):
            _refuse_secrets(held, where, f"{place}.{number}")
    elif isinstance(value, str) and SECRET.search(value):
        raise UsageError(
            f"{where}: {place} holds a token or a password, which would be recorded with the run; take it out, and "
            "log in instead (`hf auth login`, or the environment variable HF_TOKEN)"
        )


def _shown(value: Any) -> str:
    """Return a wrong value for a message; what may be a key, long and without a word in it, is cut."""
    return re.sub(r"(?=[A-Za-z0-9+=_-]*\d)[A-Za-z0-9+=_-]{24,}", lambda found: found[0][:4] + "...", repr(value))


def _explain(kind: type[BaseModel], fault: ErrorDetails, where: str) -> str:
    words = [word for i, word in enumerate(fault["loc"]) if not _is_branch(word) and not _is_tag(fault["loc"], i)]
    path = ".".join(str(word) for word in words)
    if fault["type"] == "extra_forbidden":
        *table, key = fault["loc"]
        meant = _elsewhere(kind, str(key))
        hint = f"did you mean '{meant}'?" if meant else nearest(str(key), _fields(kind, table))
        return f"{where}: unknown key {path!r}; {hint}"
    if fault["type"] == "union_tag_invalid":
        found, known = fault.get("ctx", {})["tag"], fault.get("ctx", {})["expected_tags"].replace("'", "").split(", ")
        return f"{where}: {path}.kind = {found!r}: no such kind; {nearest(found, known)}"
    if fault["type"] == "missing":
        return f"{where}: {path!r} is missing; add {words[-1]} = ..."
    if fault["type"] == "value_error":
        return ": ".join(word for word in (where, path, str(fault.get("ctx", {}).get("error", fault["msg"]))) if word)
    return f"{where}: {path} = {_shown(fault['input'])}: {_lower(fault['msg'])}{_hint(fault)}"


def _is_branch(word: str | int) -> bool:
    """Say whether a part of a location names a member of a union rather than a key."""
    return isinstance(word, str) and (word in ("str", "int", "float") or "[" in word or word.startswith("constrained-"))


def _is_tag(place: Sequence[str | int], i: int) -> bool:
    """Say whether part `i` of a location names the kind of a table that has several."""
    return place[0] == "objective" and i == 1 and len(place) > 2


def _lower(message: str) -> str:
    return message[:1].lower() + message[1:]


def _hint(fault: ErrorDetails) -> str:
    """Return the nearest valid choice, where the choices can be counted and a word was given."""
    if not isinstance(fault["input"], str) or fault["type"] not in ("literal_error", "bool_type"):
        return ""
    expected = str(fault.get("ctx", {}).get("expected", "true or false"))
    return f"; {nearest(fault['input'], expected.replace(' or ', ', ').replace(chr(39), '').split(', '))}"


def _elsewhere(kind: type[BaseModel], key: str) -> str | None:
    """Return the key that was meant by another library's word, or by our own in the wrong table."""
    tables = {"": list(kind.model_fields)}
    for name, field in kind.model_fields.items():
        found = _sections(field.annotation)
        tables |= {name: list(found[0].model_fields)} if found else {}
    meant = ours(key, tables)
    if meant is None or kind is Config:
        return meant
    own = meant.rpartition(".")[2]  # a table by itself, as `adapt` takes it
    return own if own.partition(" ")[0] in kind.model_fields else None


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
