"""Read labelled rows from a file, a folder, the hub or memory: `read` decides by what the source is.

Names of files are relative to `root`, the folder of the config that names them. Nothing here executes what it reads: no
pickle, no loading scripts from the hub.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import datasets.exceptions
import pyarrow

from rankwise.errors import DataError, StorageError, nearest
from rankwise.files import check_plain, load_json
from rankwise.streams.digests import folder_sha256, rows_sha256
from rankwise.streams.rows import Label, Rows, Table, rows_of
from rankwise.streams.tables import (
    WHOLE,
    Parts,
    from_arrays,
    from_records,
    parts_by_column,
    read_csv,
    read_jsonl,
    read_npz,
    read_parquet,
)

READERS: dict[str, Callable[[Path, str, str | None], Parts]] = {
    ".jsonl": read_jsonl,
    ".csv": read_csv,
    ".tsv": read_csv,
    ".parquet": read_parquet,
    ".npz": read_npz,
}
PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
PARTS = ("train", "test", "validation", "val", "dev")
"""Folders that divide a folder of pictures, as data sets of the hub are divided."""
HUB, MEMORY = "hub:", "memory:"
FAILED_LOADS = (OSError, ValueError, KeyError, datasets.exceptions.DatasetsError)
BROKEN_SETS = (*FAILED_LOADS, TypeError, AttributeError, IndexError, pyarrow.ArrowException)
Source = str | Path | Mapping[str, Any] | Sequence[Mapping[str, Any]] | datasets.Dataset | datasets.DatasetDict


def read(
    source: Source,
    *,
    input: str | Sequence[str] | None = None,
    target: str | None = None,
    split: str | None = None,
    split_column: str | None = None,
    extra: Sequence[str] = (),
    root: str | Path = ".",
    data: Mapping[str, Any] | None = None,
) -> Rows:
    """Rows of one split of a source.

    source: a path (.jsonl, .csv, .tsv, .parquet, .npz, a folder root/<class>/<file> with or without train/ and test/
        above, a data set folder of `save_to_disk`), `hub:org/name[:config]`, `memory:name` (a key of `data`), or the
        data itself: a mapping of columns or arrays, a list of mappings, a data frame, or a data set object.
    input, target: the columns; two input columns make pairs of texts. Defaults: `rows.INPUTS`, `rows.TARGETS`.
    split: which part; needed where the source has several and none is called train. split_column: the column that
    says so.
    extra: further columns to keep, for grouping.
    Raises DataError naming file, row or column, and the remedy.
    """
    return choose_part(
        parts(source, split_column=split_column, root=root, data=data), split, str_of(source), input, target, extra
    )


def parts(
    source: Source, *, split_column: str | None = None, root: str | Path = ".", data: Mapping[str, Any] | None = None
) -> Parts:
    """The source's tables by split name ('' where it is not divided), before columns are chosen."""
    if isinstance(source, datasets.Dataset | datasets.DatasetDict):
        return _data_set(source, "memory", split_column)
    if isinstance(source, Mapping):
        return from_arrays(
            source, "memory", split_column, lambda rows: ({"name": "memory", "sha256": None, "rows": rows},)
        )
    if not isinstance(source, str | Path):
        return parts_by_column(_in_memory(source), split_column)
    text = str(source)
    if text.startswith(MEMORY):
        return parts(_remembered(text.removeprefix(MEMORY), data or {}), split_column=split_column)
    if text.startswith(HUB):
        return _data_set(_from_hub(text), text, split_column)
    return _from_path(Path(root) / text, text, split_column)


def choose_part(
    held: Parts,
    split: str | None,
    where: str,
    input: str | Sequence[str] | None,
    target: str | None,
    extra: Sequence[str] = (),
) -> Rows:
    """Rows of one split; without a name, the only split or the one called train. Raises DataError."""
    wanted = split if split is not None else (next(iter(held)) if len(held) == 1 else "train")
    if wanted not in held:
        divided = [name for name in held if name]
        remedy = (
            nearest(wanted, divided) if divided else "it is not divided: leave split out, or name the column that says"
        )
        raise DataError(f"{where}: no split '{wanted}'; {remedy}")
    rows = rows_of(held[wanted], input, target, extra)
    return _with_digest(rows, wanted)


def str_of(source: Source) -> str:
    """What messages and the record call a source."""
    return str(source) if isinstance(source, str | Path) else "memory"


def _with_digest(rows: Rows, split: str) -> Rows:
    """Rows without a file are hashed by content, so that the record can tell two versions apart."""
    files = [{**entry, "split": split} if split else dict(entry) for entry in rows.files]
    for entry in files:
        if entry["sha256"] is None:
            entry["sha256"], entry["rows"] = rows_sha256(rows.inputs, rows.labels), len(rows)
    return dataclasses.replace(rows, files=tuple(files))


def _remembered(name: str, data: Mapping[str, Any]) -> Any:
    if name not in data:
        raise DataError(
            f"memory:{name}: no such data was handed over; {nearest(name, data)}; pass data={{'{name}': ...}}"
        )
    return data[name]


def _in_memory(source: Any) -> Table:
    """A list of rows, each a mapping, or a table that pyarrow knows: a data frame of pandas or polars, its own."""
    entry = {"name": "memory", "sha256": None, "rows": 0}
    if isinstance(source, list | tuple) and all(isinstance(row, Mapping) for row in source):
        return from_records(source, "memory", (entry,), untyped=False)
    try:
        held = pyarrow.table(source)
    except (TypeError, ValueError, pyarrow.ArrowException) as error:
        raise DataError(
            f"memory: a {type(source).__name__} cannot be read as rows ({str(error)[:80]}); give a dict of columns, a "
            "list of dicts, a data frame or a data set of `datasets`"
        ) from error
    return Table(
        "memory", tuple(held.column_names), lambda name: held[name].to_pylist(), range(held.num_rows), {}, (entry,)
    )


def _from_path(path: Path, name: str, split_column: str | None) -> Parts:
    if not path.exists():
        raise DataError(f"{name}: no such file or folder in {path.parent.name or '.'}/; {_siblings(path)}")
    if path.is_dir():
        saved = any((path / mark).is_file() for mark in ("dataset_info.json", "dataset_dict.json"))
        return _saved_data_set(path, name, split_column) if saved else _image_folder(path, name)
    if path.suffix.lower() not in READERS:
        raise DataError(f"{name}: unknown kind of file '{path.suffix}'; {nearest(path.suffix, READERS)}")
    refuse_special(path, name)
    return READERS[path.suffix.lower()](path, name, split_column)


def refuse_special(path: Path, name: str, root: Path | None = None) -> None:
    """Raise DataError for a pipe or a device, and for a link that leads out of the folder `root`; see `check_plain`."""
    try:
        check_plain(path, root)
    except StorageError as error:
        raise DataError(f"{name}: {error}") from error


def _siblings(path: Path) -> str:
    if not path.parent.is_dir():
        return "the folder is missing too; paths are relative to the config's folder"
    held = [entry.name for entry in path.parent.iterdir() if entry.is_dir() or entry.suffix.lower() in READERS]
    close = difflib.get_close_matches(path.name, held, n=5, cutoff=0.5)
    return nearest(path.name, close) if close else "check the name; paths are relative to the config's folder"


def _from_hub(name: str) -> datasets.Dataset | datasets.DatasetDict:
    repository, _, config = name.removeprefix(HUB).partition(":")
    try:
        held = datasets.load_dataset(repository, config or None)
    except FAILED_LOADS as error:
        raise DataError(
            f"{name}: cannot be loaded from the hub ({error}); check name, config and connection, or save it"
        ) from error
    if not isinstance(held, datasets.Dataset | datasets.DatasetDict):
        raise DataError(f"{name}: streamed data sets have no length; choose one that can be downloaded")
    return held


def _saved_data_set(path: Path, name: str, split_column: str | None) -> Parts:
    _check_saved(path, name)
    try:
        held = datasets.load_from_disk(str(path))
    except BROKEN_SETS as error:
        raise DataError(f"{name}: not a readable data set folder ({error}); save it again") from error
    if not len(held) or not isinstance(held, datasets.DatasetDict) and not held.column_names:
        raise DataError(f"{name}: holds no rows; save it again")
    files = [entry for entry in path.rglob("*") if entry.is_file() and not entry.name.startswith("cache-")]
    return _data_set(held, name, split_column, folder_sha256(path, files), path)


def _check_saved(path: Path, name: str) -> None:
    """Refuse a saved data set whose files are links, name files elsewhere, or are no settings."""
    for file in (entry for entry in path.rglob("*") if not entry.is_dir() or entry.is_symlink()):
        refuse_special(file, name, path)
    listed = _settings(path / "dataset_dict.json", name).get("splits", []) if _is_divided(path) else [""]
    for split in listed if isinstance(listed, list) else [None]:
        if not isinstance(split, str) or not re.fullmatch(r"\w[\w.-]*|", split):
            raise DataError(f"{name}: part {split!r} is no plain name of a folder; save it again")
        state = _settings(path / split / "state.json", name)
        _settings(path / split / "dataset_info.json", name)
        for key in ("_data_files", "_indices_data_files"):
            entries = state.get(key) or []
            for entry in entries if isinstance(entries, list) else [None]:
                file = entry.get("filename") if isinstance(entry, dict) else None
                if not isinstance(file, str) or "/" in file or not (path / split / file).is_file():
                    raise DataError(f"{name}: {key} names {file!r}, which is no file of its folder; save it again")


def _is_divided(path: Path) -> bool:
    return (path / "dataset_dict.json").is_file()


def _settings(file: Path, name: str) -> dict[str, Any]:
    try:
        found = load_json(file)
    except StorageError as error:
        raise DataError(f"{name}: {error}") from error
    if not isinstance(found, dict):
        raise DataError(f"{name}: {file.name} holds a {type(found).__name__} instead of settings; save it again")
    return found


def _data_set(
    held: datasets.Dataset | datasets.DatasetDict,
    where: str,
    column: str | None,
    sha256: str | None = None,
    root: Path | None = None,
) -> Parts:
    if isinstance(held, datasets.DatasetDict):
        return {str(split): _data_table(part, where, sha256, root) for split, part in held.items()}
    return parts_by_column(_data_table(held, where, sha256, root), column)


def _data_table(held: datasets.Dataset, where: str, sha256: str | None, root: Path | None) -> Table:
    names: dict[str, tuple[str, ...]] = {}
    for column, feature in held.features.items():
        if isinstance(feature, datasets.ClassLabel):
            names[column] = tuple(feature.names)
        if isinstance(feature, datasets.Image):
            held = held.cast_column(column, datasets.Image(decode=False))
    files = ({"name": where, "sha256": sha256, "rows": len(held)},)
    return Table(
        where,
        tuple(held.column_names),
        lambda column: _plain_column(held, column, where, root),
        range(len(held)),
        names,
        files,
    )


def _plain_column(held: datasets.Dataset, column: str, where: str, root: Path | None) -> list[Any]:
    """A column's values; a picture saved by reference becomes its path, which must lie below `root`."""
    return [_picture_path(value, where, root) if isinstance(value, Mapping) else value for value in held[column]]


def _picture_path(value: Mapping[str, Any], where: str, root: Path | None) -> Any:
    if value.get("bytes") is not None or not isinstance(value.get("path"), str):
        return value
    path = Path(value["path"])
    if root is not None:
        refuse_special(path, where, root)
    return path


def _image_folder(path: Path, name: str) -> Parts:
    folders = _folders(path)
    divided = [folder for folder in folders if folder.name in PARTS]
    if divided and len(divided) == len(folders):
        return {folder.name: _class_folders(folder, f"{name}/{folder.name}") for folder in divided}
    return {WHOLE: _class_folders(path, name)}


def _folders(path: Path) -> list[Path]:
    return sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _class_folders(path: Path, name: str) -> Table:
    files = [file for folder in _folders(path) for file in sorted(folder.iterdir()) if file.suffix.lower() in PICTURES]
    for file in files:
        if not file.is_file() or file.is_symlink() or file.parent.is_symlink():
            refuse_special(file, name, path)
    if not files:
        raise DataError(f"{name}: no pictures found; lay them out as {name}/<class>/<file> ({', '.join(PICTURES)})")
    labels: list[Label] = [file.parent.name for file in files]
    columns: dict[str, list[Any]] = {"image": list(files), "label": labels}
    entry = {"name": name, "sha256": folder_sha256(path, files), "rows": len(files)}
    return Table(name, ("image", "label"), lambda column: columns[column], range(len(files)), {}, (entry,))
