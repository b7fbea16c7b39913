"""Tensor files: the safetensors format to the byte, and hostile files refused before they cost memory."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch

from rankwise import storage, tensors
from rankwise.errors import StorageError

FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2]
WHOLE = [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool]


def example() -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    found = {str(dtype): (torch.randn(3, 5, generator=draw) * 10).to(dtype) for dtype in FLOATS + WHOLE}
    base = torch.arange(12.0).reshape(3, 4)
    return found | {
        "odd.bytes": torch.tensor([1, 2, 3], dtype=torch.uint8),
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 7),
        "transposed": base.t(),
        "view of the same": base[1],
        "strided": base[:, ::2],
        "broadcast": torch.tensor([1.0]).expand(4),
        "parameter é": torch.nn.Parameter(torch.ones(2)),
    }


def equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    """The same dtype, shape and bits (float8 has no comparison of its own)."""
    bits = [x.detach().contiguous().reshape(-1).view(torch.uint8) for x in (a, b)]
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(*bits)


def saved(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def crafted(path: Path, header: dict | bytes, payload: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return saved(path, len(text).to_bytes(8, "little") + text + payload)


def entry(dtype: str = "F32", shape: object = (1,), offsets: object = (0, 4), **more: object) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets} | more


def test_every_dtype_shape_and_stride_comes_back(tmp_path):
    before = example()
    after = storage.load_tensors(saved(tmp_path / "x.safetensors", storage.save_tensors(before)))
    assert after.keys() == before.keys()
    assert all(equal(before[name], after[name]) for name in before)
    after["transposed"].add_(1)
    assert equal(before["view of the same"], after["view of the same"]), "tensors read do not share memory"


def test_both_ways_with_the_reference_implementation(tmp_path):
    before = example()
    theirs = safetensors.torch.load(storage.save_tensors(before, {"format": "pt"}))
    assert theirs.keys() == before.keys()
    assert all(equal(before[name], theirs[name]) for name in before)
    plain = {name: tensor.detach().clone().contiguous() for name, tensor in before.items()}
    safetensors.torch.save_file(plain, tmp_path / "theirs.safetensors", metadata={"format": "pt"})
    ours = storage.load_tensors(tmp_path / "theirs.safetensors")
    assert ours.keys() == before.keys()
    assert all(equal(before[name], ours[name]) for name in before)


def test_the_bytes_do_not_depend_on_the_order_and_are_aligned():
    before = example()
    data = storage.save_tensors(before)
    assert data == storage.save_tensors(dict(reversed(before.items())))
    length = int.from_bytes(data[:8], "little")
    assert length % 8 == 0
    header = json.loads(data[8 : 8 + length])
    assert all(header[name]["data_offsets"][0] % tensor.element_size() == 0 for name, tensor in before.items())


def test_tensors_stream_into_a_saved_folder(tmp_path):
    before = example()
    content = {"state.safetensors": storage.tensor_writer(before)}
    storage.write_folder(tmp_path / "x", content, kind="snapshot")
    found = storage.read_folder(tmp_path / "x", kind="snapshot")["state.safetensors"]
    assert found.read_bytes() == storage.save_tensors(before)


def test_an_empty_tensor_may_be_listed_after_one_that_starts_where_it_does(tmp_path):
    header = {"b": entry(), "a": entry(shape=[0], offsets=[0, 0])}
    found = storage.load_tensors(crafted(tmp_path / "x", header, F))
    assert {name: tensor.tolist() for name, tensor in found.items()} == {"a": [], "b": [0.0]}


def test_nothing_is_a_valid_file(tmp_path):
    assert storage.load_tensors(saved(tmp_path / "x", storage.save_tensors({}))) == {}


def test_what_cannot_be_saved_is_named():
    with pytest.raises(StorageError, match="'z' of torch.complex64 cannot be saved"):
        storage.save_tensors({"z": torch.zeros(1, dtype=torch.complex64)})
    with pytest.raises(StorageError, match="'__metadata__'"):
        storage.save_tensors({"__metadata__": torch.zeros(1)})
    with pytest.raises(StorageError, match="at most 32768"):
        storage.save_tensors({str(i): torch.zeros(0) for i in range(tensors.MAX_TENSORS + 1)})


@pytest.mark.parametrize("dtype", [dtype for dtype in FLOATS if dtype != torch.float8_e4m3fn])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite_need_permission(tmp_path, dtype, value):
    bad = torch.tensor([1.0, value]).to(dtype)
    path = saved(tmp_path / "x", storage.save_tensors({"good": torch.ones(1), "bad": bad}))
    with pytest.raises(StorageError, match="tensor 'bad' holds NaN or infinite"):
        storage.load_tensors(path)
    assert equal(storage.load_tensors(path, finite=False)["bad"], bad)


def test_a_limit_is_kept(tmp_path):
    path = saved(tmp_path / "x", storage.save_tensors({"a": torch.ones(10), "b": torch.ones(15)}))
    assert len(storage.load_tensors(path, limit_bytes=100)) == 2
    with pytest.raises(StorageError, match="take 100 bytes, at most 99"):
        storage.load_tensors(path, limit_bytes=99)


F = b"\0\0\0\0"
HOSTILE: dict[str, tuple[dict | bytes, bytes, str]] = {
    "not JSON": (b"hello", b"", "is not valid JSON"),
    "not an object": (b"[1]", b"", "header is not an object"),
    "deep": (b"[" * 1_000_000, b"", "nested too deeply"),
    "duplicate name": (b'{"a":%b,"a":%b}' % ((json.dumps(entry()).encode(),) * 2), F, "duplicate key 'a'"),
    "duplicate key": (
        b'{"a":{"dtype":"F32","dtype":"I8","shape":[1],"data_offsets":[0,4]}}',
        F,
        "duplicate key 'dtype'",
    ),
    "metadata not text": ({"__metadata__": {"a": 1}, "a": entry()}, F, "__metadata__ must map names to text"),
    "entry not an object": ({"a": 3}, b"", "tensor 'a' must have exactly"),
    "entry with more": ({"a": entry(strides=[0])}, F, "tensor 'a' must have exactly"),
    "unknown dtype": ({"a": entry("F31")}, F, "dtype 'F31'; supported: F64"),
    "dtype a list": ({"a": entry(["F32"])}, F, "supported: F64"),  # type: ignore[arg-type]
    "negative size": ({"a": entry(shape=[-1, -1])}, F, "not whole numbers"),
    "fraction": ({"a": entry(shape=[1.0])}, F, "not whole numbers"),
    "true": ({"a": entry(shape=[True])}, F, "not whole numbers"),
    "huge size": ({"a": entry(shape=[1 << 64, 0])}, F, "not whole numbers"),
    "shape as text": ({"a": entry(shape="1")}, F, "not whole numbers"),
    "too many axes": ({"a": entry(shape=[1] * 65)}, F, "not whole numbers"),
    "product overflows": ({"a": entry(shape=[1 << 32, 1 << 32])}, F, "disagrees with its offsets"),
    "product overflows to the right size": (
        {"a": entry(shape=[(1 << 62) + 1, 4])},
        F * 4,
        "disagrees with its offsets",
    ),
    "empty with a giant size": (
        {"a": entry(shape=[0, 10**12], offsets=[0, 0])},
        b"",
        "empty but has a size that overflows",
    ),
    "wrong size": ({"a": entry(shape=[2])}, F, "disagrees with its offsets"),
    "offsets reversed": ({"a": entry(offsets=[4, 0])}, F, "disagrees with its offsets"),
    "three offsets": ({"a": entry(offsets=[0, 4, 8])}, F, "not whole numbers"),
    "overlap": ({"a": entry(), "b": entry()}, F, "'b' does not start at byte 4"),
    "gap": ({"a": entry(offsets=[4, 8])}, F * 2, "'a' does not start at byte 0"),
    "beyond the end": ({"a": entry(shape=[1 << 40], offsets=[0, 1 << 42])}, F, "its header says 4398046511104"),
    "trailing bytes": ({"a": entry()}, F * 2, "holds 8 bytes of tensors, its header says 4"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files_are_refused_before_anything_is_allocated(tmp_path, monkeypatch, case):
    header, payload, reason = HOSTILE[case]
    path = crafted(tmp_path / "x.safetensors", header, payload)
    monkeypatch.setattr(torch, "empty", lambda *args, **kwargs: pytest.fail("allocated"))
    with pytest.raises(StorageError) as caught:
        storage.load_tensors(path)
    assert reason in str(caught.value)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("data", [b"", b"1234567", (1 << 63).to_bytes(8, "little"), (9).to_bytes(8, "little") + b"{}"])
def test_files_shorter_than_they_declare(tmp_path, data):
    with pytest.raises(StorageError, match="fewer than it declares"):
        storage.load_tensors(saved(tmp_path / "x", data))


def test_truncation_at_every_byte_is_refused(tmp_path):
    data = storage.save_tensors({"a": torch.ones(3), "b": torch.ones(2, dtype=torch.int8)})
    for size in range(len(data)):
        with pytest.raises(StorageError):
            storage.load_tensors(saved(tmp_path / "x", data[:size]))


def test_a_million_empty_tensors_are_refused_at_once(tmp_path):
    one = '"%d":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'
    start = time.monotonic()
    for count, reason in [(1_000_000, "its header has"), (60_000, "declares 60000 tensors, at most 32768")]:
        path = crafted(tmp_path / "x", ("{" + ",".join(one % i for i in range(count)) + "}").encode())
        with pytest.raises(StorageError, match=reason):
            storage.load_tensors(path)
    assert time.monotonic() - start < 5


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(StorageError, match="none: cannot be read: No such file"):
        storage.load_tensors(tmp_path / "none")
