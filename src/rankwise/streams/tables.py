"""Tables from files: .jsonl, .csv, .parquet and .npz, each broken file refused with its name and the place in it."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet

from rankwise.errors import DataError
from rankwise.streams.digests import file_sha256
from rankwise.streams.rows import INPUTS, Table, require

Parts = dict[str, Table]
"""A source's tables by split; an undivided source has the single split ''."""
WHOLE = ""
BROKEN_ARRAYS = (
    *(OSError, ValueError, EOFError, KeyError, RuntimeError, SyntaxError, TypeError, OverflowError),
    *(zipfile.BadZipFile, zlib.error, struct.error, MemoryError),
)
SMALL, RATIO = 128 << 20, 200
"""Bytes that any file may unpack to; times its own size that a larger one may."""
BATCH, ARRAYS = 32, 1000
"""Rows of parquet read at a time; arrays in an archive."""


def file_entry(path: Path, name: str, rows: int) -> dict[str, Any]:
    """What the record holds of a source file."""
    return {"name": name, "sha256": file_sha256(path), "rows": rows}


def parts_by_column(table: Table, column: str | None) -> Parts:
    """Divide a table by the values of its split column; without such a column it stays whole.

    A column named by the user must exist (DataError); by default `split` is used where there is one.
    """
    if column is not None:
        require(table, column)
    chosen = column or "split"
    if chosen not in table.names:
        return {WHOLE: table}
    marks = [str(value) for value in table.values(chosen)]
    return {
        mark: _part(table, [i for i, m in zip(table.index, marks, strict=True) if m == mark])
        for mark in dict.fromkeys(marks)
    }


def _part(table: Table, index: Sequence[int]) -> Table:
    return dataclasses.replace(table, index=index)


def from_records(
    records: Sequence[Mapping[str, Any]],
    where: str,
    files: tuple[dict[str, Any], ...],
    untyped: bool,
    lines: Sequence[int] = (),
) -> Table:
    """A table from one mapping a row; a key that a row lacks reads as None. `lines`: where they begin in the file."""
    names = tuple(dict.fromkeys(key for record in records for key in record))
    rows = range(len(records))
    return Table(where, names, lambda name: [r.get(name) for r in records], rows, {}, files, untyped, lines)


def read_jsonl(path: Path, name: str, column: str | None) -> Parts:
    """One JSON object a line, UTF-8; blank lines are skipped."""
    held = {n: _object(line, f"{name}, line {n}") for n, line in enumerate(_lines(path, name), start=1) if line.strip()}
    files = (file_entry(path, name, len(held)),)
    return parts_by_column(from_records(list(held.values()), name, files, False, list(held)), column)


def _lines(path: Path, name: str) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{name}: cannot be read as UTF-8 text ({error}); save it again as UTF-8") from error


def _object(line: str, place: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{place}: not JSON ({error}); the file may be cut short: correct the line or copy it again"
        ) from error
    if "\\ud" in line.lower() and not _encodable(record):
        raise DataError(f"{place}: half of a surrogate pair, which is no text; correct the line")
    if not isinstance(record, dict):
        raise DataError(f"{place}: expected an object with named columns, got {type(record).__name__}; write {{...}}")
    return record


def _encodable(record: Any) -> bool:
    try:
        json.dumps(record, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def read_csv(path: Path, name: str, column: str | None) -> Parts:
    """Comma-separated (.tsv: tab-separated) text with a header line, UTF-8."""
    separator = "\t" if path.suffix.lower() == ".tsv" else ","
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            held = _csv_records(csv.reader(stream, strict=True, delimiter=separator), name)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{name}: cannot be read as UTF-8 text ({error}); save it again as UTF-8") from error
    files = (file_entry(path, name, len(held)),)
    return parts_by_column(from_records(list(held.values()), name, files, True, list(held)), column)


def _csv_records(reader: Any, name: str) -> dict[int, dict[str, str]]:
    """Rows by the line that they begin on."""
    records = {}
    try:
        header = next(reader, None) or []
        if twice := [column for column, times in Counter(header).items() if times > 1]:
            raise DataError(f"{name}, line 1: column '{twice[0]}' is named twice; give every column its own name")
        line = reader.line_num + 1
        for fields in reader:
            if fields and len(fields) != len(header):
                raise DataError(
                    f"{name}, line {line}: {len(fields)} fields where the header has {len(header)}; quote separators"
                )
            if fields:
                records[line] = dict(zip(header, fields, strict=True))
            line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(
            f"{name}, line {reader.line_num}: not valid CSV ({error}); close the quotes or copy the file again"
        ) from error
    return records


def read_parquet(path: Path, name: str, column: str | None) -> Parts:
    """A parquet file; columns are read from the table when they are asked for."""
    limit = unpacked_limit(path)
    try:
        held = _bounded(path, name, limit)
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{name}: not a readable parquet file ({error}); it may be cut short: copy it again") from error
    files = (file_entry(path, name, held.num_rows),)

    def read(wanted: str) -> list[Any]:
        return held.column(wanted).to_pylist()

    return parts_by_column(Table(name, tuple(held.column_names), read, range(held.num_rows), {}, files), column)


def unpacked_limit(path: Path) -> int:
    """Bytes that a compressed file may unpack to: a file made to fill the memory unpacks to thousands of times its
    size."""
    return max(SMALL, RATIO * path.stat().st_size)


def _bounded(path: Path, name: str, limit: int) -> pyarrow.Table:
    """Read a parquet file a few rows at a time, until it turns out larger than `limit`."""
    with pyarrow.parquet.ParquetFile(path) as file:
        batches, size, schema = [], 0, file.schema_arrow
        if 4 * file.metadata.num_rows * max(1, file.metadata.num_columns) > limit:
            raise DataError(f"{name}: says it has {file.metadata.num_rows} rows, far beyond its size; write it again")
        for batch in map(_spelt_out, file.iter_batches(batch_size=BATCH, use_threads=False)):
            size += batch.nbytes
            if size > limit:
                raise DataError(f"{name}: unpacks to more than {limit} bytes, far beyond its size; write it again")
            batches.append(batch)
    return pyarrow.Table.from_batches(batches, _spelt_out(schema.empty_table()).schema)


def _spelt_out(batch: Any) -> Any:
    """Write the values of a dictionary out, as reading them row by row does."""
    for place, kind in enumerate(batch.schema.types):
        if pyarrow.types.is_dictionary(kind):
            field = batch.schema.field(place).with_type(kind.value_type)
            batch = batch.set_column(place, field, batch.column(place).cast(kind.value_type))
    return batch


def read_npz(path: Path, name: str, column: str | None) -> Parts:
    """Arrays `x_<split>` and `y_<split>` (as columns `input` and `target`), or plain arrays of one length.

    `class_names` names the classes; any other array may be asked for as a column, with one value a row
    (`alphabet_train` before `alphabet`) or one a class, and `<array>_names` names its values.
    """
    try:
        _refuse_swollen(path, name)
        with np.load(path, allow_pickle=False) as held:
            arrays = {key: held[key] for key in held.files}
    except BROKEN_ARRAYS as error:
        raise DataError(f"{name}: not a readable npz file without pickled objects ({error}); copy it again") from error
    if single := [key for key, array in arrays.items() if array.ndim == 0]:
        raise DataError(f"{name}: '{single[0]}' is one value, not one a row; give arrays with a row for each input")
    return from_arrays(arrays, name, column, lambda rows: (file_entry(path, name, rows),))


def _refuse_swollen(path: Path, name: str) -> None:
    """Refuse an archive that unpacks to far more than its size, or whose arrays claim more than their entries hold."""
    with zipfile.ZipFile(path) as archive:
        entries = [entry for entry in archive.infolist() if entry.filename.endswith(".npy")]
        limit = unpacked_limit(path)
        if len(entries) > ARRAYS:
            raise DataError(f"{name}: holds {len(entries)} arrays, at most {ARRAYS} are read; write a row in an array")
        if sum(entry.file_size for entry in entries) > limit:
            raise DataError(f"{name}: unpacks to more than {limit} bytes, far beyond its size; write it again")
        for entry in entries:
            with archive.open(entry) as stream:
                claimed = _claimed(stream)
            if claimed > entry.file_size:
                raise DataError(f"{name}: array '{entry.filename}' claims {claimed} bytes but holds {entry.file_size}")


def _claimed(stream: Any) -> int:
    """Bytes that the header of an array says it has."""
    version = np.lib.format.read_magic(stream)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
    if read is None:
        raise ValueError(f"version {version} of the format")
    shape, _, kind = read(stream)
    if any(size < 0 for size in shape):
        raise ValueError(f"shape {shape}")
    return math.prod(max(size, 1) for size in shape) * kind.itemsize


def from_arrays(
    arrays: Mapping[str, Any], where: str, column: str | None, files: Callable[[int], tuple[dict[str, Any], ...]]
) -> Parts:
    """Tables from named arrays or lists; see `read_npz`. `files(rows)` makes the entries for the record."""
    splits = [key.removeprefix("x_") for key in arrays if key.startswith("x_")]
    if not splits:
        return parts_by_column(_array_table(arrays, where, files), column)
    return {split: _split_table(arrays, split, where, files) for split in splits}


def _split_table(
    arrays: Mapping[str, Any], split: str, where: str, files: Callable[[int], tuple[dict[str, Any], ...]]
) -> Table:
    renamed = {"input": f"x_{split}", "target": f"y_{split}"}
    if renamed["target"] not in arrays:
        raise DataError(f"{where}: '{renamed['input']}' has no '{renamed['target']}' beside it; add the labels")
    own = {column: arrays[key] for column, key in renamed.items()}
    others = {key: value for key, value in arrays.items() if not key.startswith(("x_", "y_"))}
    mine = {key.removesuffix(f"_{split}"): value for key, value in others.items() if key.endswith(f"_{split}")}
    return _array_table({**others, **mine, **own}, where, files)


def _array_table(arrays: Mapping[str, Any], where: str, files: Callable[[int], tuple[dict[str, Any], ...]]) -> Table:
    names = _class_names(arrays)
    size = _size(arrays)
    for key in ("input", "target"):
        if key in arrays and len(arrays[key]) != size:
            raise DataError(f"{where}: '{key}' has {len(arrays[key])} rows, not {size}; give one label for each input")
    columns = tuple(key for key in arrays if key != "class_names")
    labelled = {key: names for key in columns if names is not None}
    return Table(
        where, columns, lambda key: _array_column(arrays, key, size, where), range(size), labelled, files(size)
    )


def _size(arrays: Mapping[str, Any]) -> int:
    for key in (*INPUTS, *arrays):
        if key in arrays and key != "class_names":
            return len(arrays[key])
    return 0


def _class_names(arrays: Mapping[str, Any]) -> tuple[str, ...] | None:
    names = arrays.get("class_names")
    return None if names is None else tuple(str(name) for name in names)


def _array_column(arrays: Mapping[str, Any], key: str, size: int, where: str) -> Any:
    """One value a row; an array with one value a class is spread over the rows by their labels."""
    values, classes = arrays[key], arrays.get("class_names")
    if len(values) != size and classes is not None and len(values) == len(classes) and "target" in arrays:
        target = np.asarray(arrays["target"]).astype(np.int64)
        values = np.asarray(values)[np.clip(target, 0, len(classes) - 1)]
    if len(values) != size:
        raise DataError(f"{where}: '{key}' has {len(values)} values for {size} rows; give one a row or one a class")
    names = arrays.get(f"{key}_names")
    if names is None:
        return values
    if any(not 0 <= int(value) < len(names) for value in values):
        raise DataError(f"{where}: '{key}' has values beyond the {len(names)} of '{key}_names'; name each value")
    return [str(names[int(value)]) for value in values]
