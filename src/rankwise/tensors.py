"""Named tensors as safetensors bytes: written in a stream, read with every limit checked before memory is taken.

The format (safetensors 0.x): 8 bytes little-endian length n, n bytes of JSON (name: dtype, shape, data_offsets), then
the tensors' bytes without gaps. Files are read with plain reads, not mapped: a file that is cut or replaced later
cannot crash the process, and the memory taken is the tensors' own size.
"""

from __future__ import annotations

import io
import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from rankwise.errors import StorageError
from rankwise.files import CHUNK, check_plain, explained, parse_json

if TYPE_CHECKING:
    import torch
    from torch import Tensor

MAX_HEADER = 4 << 20  # bytes; 32,768 entries of 128 bytes
MAX_TENSORS = 1 << 15
MAX_EMPTY = 1 << 31  # product of the other sizes of a tensor that has a size of 0

_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1}
_BYTES |= {"I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}


def _dtypes() -> dict[str, torch.dtype]:
    """The format's names of the supported dtypes."""
    import torch

    return {
        "F64": torch.float64,
        "F32": torch.float32,
        "F16": torch.float16,
        "BF16": torch.bfloat16,
        "F8_E4M3": torch.float8_e4m3fn,
        "F8_E5M2": torch.float8_e5m2,
        "I64": torch.int64,
        "I32": torch.int32,
        "I16": torch.int16,
        "I8": torch.int8,
        "U8": torch.uint8,
        "BOOL": torch.bool,
    }


class _Entry(NamedTuple):
    """One tensor of a file, as its header declares it; `begin` and `end` count from the end of the header."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def save_tensors(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """Return the tensors as safetensors bytes, the same for the same tensors; any shape, strides and device."""
    buffer = io.BytesIO()
    tensor_writer(tensors, metadata)(buffer)
    return buffer.getvalue()


def tensor_writer(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> Callable[[BinaryIO], None]:
    """Return a writer for `storage.write_folder` that copies one tensor at a time, for sets too large to hold twice.

    Largest elements come first, then by name, so that all are aligned. Raises StorageError for a dtype not supported.
    """
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header = _header_bytes({name: tensors[name] for name in order}, metadata)

    def write(file: BinaryIO) -> None:
        file.write(header)
        for name in order:
            file.write(_bytes_of(tensors[name].detach().cpu().contiguous()))

    return write


def load_tensors(path: Path, *, limit_bytes: int | None = None, finite: bool = True) -> dict[str, Tensor]:
    """Read a safetensors file into new CPU tensors, in the file's order.

    Refused before any tensor is allocated: a header that is too long, has duplicate keys or too many tensors, unknown
    dtypes, sizes that overflow or disagree with the file, gaps and overlaps, more than `limit_bytes` in all.
    Refused after: NaN and infinities, unless `finite=False`. Raises StorageError naming file, tensor and reason.
    """
    check_plain(path)
    with explained(path, "cannot be read"), path.open("rb", buffering=0) as file:
        entries = _entries(file, path)
        _check_total(path, entries, limit_bytes)
        tensors = {entry.name: _read(file, path, entry) for entry in entries}
    for name, tensor in tensors.items() if finite else ():
        if not _is_finite(tensor):
            raise StorageError(f"{path}: tensor {name!r} holds NaN or infinite values; finite=False loads it anyway")
    return tensors


def declared(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor in a safetensors file, with every check that `load_tensors` makes of a header.

    For files that another library reads: what is refused here never reaches it.
    """
    check_plain(path)
    with explained(path, "cannot be read"), path.open("rb", buffering=0) as file:
        return {entry.name: entry.shape for entry in _entries(file, path)}


def _header_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None) -> bytes:
    codes = {dtype: code for code, dtype in _dtypes().items()}
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    begin = 0
    for name, tensor in tensors.items():
        if tensor.dtype not in codes or name == "__metadata__":
            raise StorageError(f"tensor {name!r} of {tensor.dtype} cannot be saved; supported: {', '.join(_BYTES)}")
        end = begin + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": codes[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
        begin = end
    data = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    data += b" " * (-len(data) % 8)
    if len(data) > MAX_HEADER or len(tensors) > MAX_TENSORS:
        raise StorageError(f"{len(tensors)} tensors do not fit in one file (at most {MAX_TENSORS}); split them")
    return len(data).to_bytes(8, "little") + data


def _bytes_of(tensor: Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor, shared."""
    import torch

    array: Any = tensor.reshape(-1).view(torch.uint8).numpy()  # a buffer, which its stubs do not say
    return memoryview(array)


def _is_finite(tensor: Tensor) -> bool:
    import torch

    if not tensor.is_floating_point():
        return True
    return bool(torch.isfinite(tensor.float() if tensor.element_size() == 1 else tensor).all())


def _entries(file: io.FileIO, path: Path) -> list[_Entry]:
    """The entries in the order of their bytes; leaves the file where those bytes start."""
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > size - 8:
        raise StorageError(f"{path}: has {size} bytes, fewer than it declares; it was cut or is no safetensors file")
    if length > MAX_HEADER:
        raise StorageError(f"{path}: its header has {length} bytes, at most {MAX_HEADER} are read; split the file")
    data = bytearray(length)
    _fill(memoryview(data), file, path)
    header = parse_json(bytes(data), f"{path} (header)")
    if not isinstance(header, dict):
        raise StorageError(f"{path}: its header is not an object; it was altered")
    _check_metadata(path, header.pop("__metadata__", {}))
    if len(header) > MAX_TENSORS:
        raise StorageError(f"{path}: declares {len(header)} tensors, at most {MAX_TENSORS} are read; split the file")
    entries = sorted((_entry(path, *item) for item in header.items()), key=lambda entry: (entry.begin, entry.end))
    _check_spans(path, entries, size - 8 - length)
    return entries


def _entry(path: Path, name: str, value: Any) -> _Entry:
    """One checked entry: known dtype, sizes whole and not negative, their product equal to the bytes declared."""
    where = f"{path}: tensor {name[:80]!r}"
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise StorageError(f"{where} must have exactly dtype, shape and data_offsets; it was altered")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _BYTES:
        raise StorageError(f"{where} has dtype {str(dtype)[:40]!r}; supported: {', '.join(_BYTES)}")
    if not _whole(shape) or len(shape) > 64 or not _whole(offsets) or len(offsets) != 2:
        raise StorageError(f"{where} has a shape or offsets that are not whole numbers >= 0; it was altered")
    count = math.prod(shape)
    if count == 0 and math.prod(size for size in shape if size) > MAX_EMPTY:
        raise StorageError(f"{where} is empty but has a size that overflows; it was altered")
    if offsets[1] - offsets[0] != count * _BYTES[dtype]:
        raise StorageError(f"{where} has a shape that disagrees with its offsets; it was altered")
    return _Entry(name, dtype, tuple(shape), *offsets)


def _whole(values: object) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 1 << 63 for value in values)


def _check_metadata(path: Path, metadata: object) -> None:
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise StorageError(f"{path}: its __metadata__ must map names to text; it was altered")


def _check_spans(path: Path, entries: list[_Entry], size: int) -> None:
    """The tensors' bytes follow each other without gap or overlap and fill the file."""
    end = 0
    for entry in entries:
        if entry.begin != end:
            raise StorageError(f"{path}: tensor {entry.name[:80]!r} does not start at byte {end}; it was altered")
        end = entry.end
    if end != size:
        raise StorageError(f"{path}: holds {size} bytes of tensors, its header says {end}; it was truncated or altered")


def _check_total(path: Path, entries: list[_Entry], limit_bytes: int | None) -> None:
    total = entries[-1].end if entries else 0
    if limit_bytes is not None and total > limit_bytes:
        raise StorageError(f"{path}: its tensors take {total} bytes, at most {limit_bytes} are allowed here")


def _read(file: io.FileIO, path: Path, entry: _Entry) -> Tensor:
    import torch

    tensor = torch.empty(entry.shape, dtype=_dtypes()[entry.dtype])
    _fill(_bytes_of(tensor), file, path)
    return tensor


def _fill(target: memoryview, file: io.FileIO, path: Path) -> None:
    """Read exactly as many bytes as `target` has."""
    done = 0
    while done < len(target):
        count = file.readinto(target[done : done + CHUNK])
        if not count:
            raise StorageError(f"{path}: ended while being read; another process cut it")
        done += count
