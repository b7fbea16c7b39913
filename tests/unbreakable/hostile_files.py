"""Hostile files, made the same each time: adapters, configs, data sets, bases and runs that mean harm or are broken.

A case writes itself into a folder of its own, below which everything it may touch lies. Beside that folder lies
`outside`, which holds sound files of every kind: what leads there is an escape.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import random
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rankwise.storage import MANIFEST, write_folder

CANARY = "rankwise_canary"
"""A module that lies on the path and is named in files; whoever imports it runs code that came with data."""
MARK = "OUTSIDE"
"""The label of what must not be read."""
STALL = "(([a-z_.0-9]+)+)+!"
"""A regular expression that never ends on a module's name."""
WORDS = ("../../outside", "/etc/passwd", "..", "a/../../b", "\0", "a\nb", "\ud800", "%s%n", "x" * 100_000, CANARY)
ODD: tuple[Any, ...] = (None, True, -1, 0, 1.5, 10**30, "", "x", [], {}, [[]], {"a": 1}, 1e308)


@dataclass(frozen=True)
class Case:
    """One hostile thing."""

    name: str
    kind: str
    """What opens it: adapter, config, rows, base, run."""
    write: Callable[[Path], str]
    """Puts it into an empty folder and returns the name of what is opened."""
    refused: bool | None = None
    """True: it must be refused; None: it may be read, within the bounds."""
    declared: int = 0
    """Bytes of tensors or pixels that it says it holds."""


class Escape:
    """Unpickled, it runs a command."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {CANARY}",)


def cases(sound: Path) -> list[Case]:
    """All of them, from the sound things in `sound`: ours, peft, base, vit, run."""
    made = [
        *(Case(f"adapter/tensors/{n}", "adapter", tensors_of(sound / "ours", d), r) for n, d, r in safetensors(sound)),
        *(Case(f"peft/tensors/{n}", "adapter", peft_tensors(sound / "peft", d), r) for n, d, r in safetensors(sound)),
        *(Case(f"base/tensors/{n}", "base", base_tensors(sound / "base", d), r) for n, d, r in safetensors(sound)),
        *adapters(sound),
        *pefts(sound),
        *configs(),
        *tables(),
        *archives(),
        *pictures(),
        *bases(sound),
        *runs(sound),
        *mutations(sound),
    ]
    assert len({case.name for case in made}) == len(made)
    return made


# Tensors.


def packed(header: Any, body: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file with this header (text, bytes or JSON), and a length that may lie."""
    text = header if isinstance(header, bytes) else (header if isinstance(header, str) else json.dumps(header)).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def entry(shape: Any = (1,), begin: Any = 0, end: Any = 4, dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def safetensors(sound: Path) -> Iterator[tuple[str, bytes, bool | None]]:
    """Files of tensors: (name, bytes, whether they must be refused)."""
    whole = (sound / "ours" / "adapter.safetensors").read_bytes()
    size = int.from_bytes(whole[:8], "little")
    header, body = json.loads(whole[8 : 8 + size]), whole[8 + size :]
    first = next(iter(header))
    text = json.dumps(header)
    yield "empty file", b"", True
    yield "seven bytes", b"1234567", True
    yield "half", whole[: len(whole) // 2], True
    yield "one byte short", whole[:-1], True
    yield "trailing bytes", whole + b"x" * 9, True
    for power in (22, 31, 32, 63, 64):
        yield f"length 2^{power}", packed(header, body, 2**power - 1), True
    yield "pickle", pickle.dumps({"a": Escape()}), True
    yield "torch archive", torch_archive(), True
    yield "gzip", gzip.compress(whole), True
    yield "duplicate key", packed(text[:-1] + f', "{first}": {json.dumps(header[first])}}}', body), True
    yield "NaN payload", packed({"a": entry()}, struct.pack("<f", float("nan"))), True
    yield "infinite payload", packed({"a": entry()}, struct.pack("<f", float("inf"))), True
    yield "overlap", packed({"a": entry(), "b": entry()}, b"\0" * 4), True
    yield "gap", packed({"a": entry(), "b": entry(begin=8, end=12)}, b"\0" * 12), True
    yield "stride-0 giant", packed({"a": entry([2**40], 0, 4)}, b"\0" * 4), True
    yield "zero size with 10^12", packed({"a": entry([0, 10**12], 0, 0)}), True
    yield "zero size with 2^63", packed({"a": entry([0, 2**63], 0, 0)}), True
    yield "product wraps to 4", packed({"a": entry([2**32, 2**32, 1], 0, 4)}, b"\0" * 4), True
    yield "many sizes", packed({"a": entry([1] * 5000)}, b"\0" * 4), True
    yield "a million empty tensors", packed("{" + ",".join(_empties(1_000_000)) + "}"), True
    yield "40,000 empty tensors", packed("{" + ",".join(_empties(40_000)) + "}"), True
    yield "header of 5 MB", packed(" " * (5 << 20) + text, body), True
    yield "deep header", packed("[" * 100_000 + "]" * 100_000), True
    yield "deep entry", packed('{"a":' + '{"a":' * 50_000 + "1" + "}" * 50_001), True
    yield "no header", packed(b""), True
    yield "header of text", packed(b'"a"'), True
    yield "not UTF-8", packed(b'{"\xff\xfe":1}'), True
    yield (
        "huge number",
        packed('{"a":{"dtype":"F32","shape":[' + "9" * 5000 + '],"data_offsets":[0,4]}}', b"\0" * 4),
        True,
    )
    yield "constant NaN", packed('{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,4]}}', b"\0" * 4), True
    yield "metadata of numbers", packed({"__metadata__": {"a": 1}, "a": entry()}, b"\0" * 4), True
    for value in ODD[:11]:
        yield f"shape {value!r}"[:40], packed({"a": entry([value])}, b"\0" * 4), True
    for value in (None, "x", -4, 2**63, 1.0, True):
        yield f"offset {value!r}", packed({"a": entry([1], 0, value)}, b"\0" * 4), True
    for dtype in ("F31", "O", "object", "", None, 7, ["F32"]):
        yield f"dtype {dtype!r}", packed({"a": entry(dtype=dtype)}, b"\0" * 4), True
    for name in WORDS:
        yield f"tensor called {name[:12]!r}", packed({name: entry()}, b"\0" * 4), None


def _empties(count: int) -> Iterator[str]:
    value = json.dumps(entry([0], 0, 0), separators=(",", ":"))
    return (f'"{i}":{value}' for i in range(count))


def torch_archive() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a/data.pkl", pickle.dumps(Escape()))
        archive.writestr("a/version", "3\n")
    return buffer.getvalue()


def copied(source: Path, folder: Path, name: str) -> Path:
    return Path(shutil.copytree(source, folder / name))


def sealed(folder: Path, kind: str = "adapter") -> str:
    """Give a folder a manifest that agrees with its files: whoever writes them writes that too."""
    files = {file.name: file.read_bytes() for file in folder.iterdir() if file.name != MANIFEST}
    shutil.rmtree(folder)
    write_folder(folder, files, kind=kind)
    return folder.name


def tensors_of(source: Path, data: bytes) -> Callable[[Path], str]:
    def write(folder: Path) -> str:
        place = copied(source, folder, "ours")
        (place / "adapter.safetensors").write_bytes(data)
        return sealed(place)

    return write


def peft_tensors(source: Path, data: bytes) -> Callable[[Path], str]:
    def write(folder: Path) -> str:
        place = copied(source, folder, "peft")
        for name in (MANIFEST, "provenance.json"):
            (place / name).unlink(missing_ok=True)
        (place / "adapter_model.safetensors").write_bytes(data)
        return "peft"

    return write


def base_tensors(source: Path, data: bytes) -> Callable[[Path], str]:
    def write(folder: Path) -> str:
        (copied(source, folder, "base") / "model.safetensors").write_bytes(data)
        return "base"

    return write


# Adapters.


def changed(source: Path, file: str, change: Callable[[dict[str, Any]], Any], seal: bool) -> Callable[[Path], str]:
    """A copy of a folder with a JSON file changed in place, or replaced by what `change` returns (bytes or JSON)."""

    def write(folder: Path) -> str:
        place = copied(source, folder, source.name)
        record = json.loads((place / file).read_text())
        new = change(record)
        (place / file).write_bytes(new if isinstance(new, bytes) else json.dumps(record).encode())
        if seal:
            return sealed(place)
        for name in (MANIFEST, "provenance.json"):
            (place / name).unlink(missing_ok=True)
        return place.name

    return write


def put(*path: str | int, value: Any) -> Callable[[dict[str, Any]], None]:
    """Put a value at a place of a record."""

    def change(record: Any) -> None:
        for word in path[:-1]:
            record = record[word]
        record[path[-1]] = value

    return change


def broken_json(valid: bytes) -> dict[str, bytes]:
    return {
        "empty": b"",
        "half": valid[: len(valid) // 2],
        "not UTF-8": b"\xff\xfe" + valid,
        "a list": b"[]",
        "a number": b"1",
        "a text": b'"x"',
        "nothing": b"null",
        "deep lists": b"[" * 200_000 + b"]" * 200_000,
        "deep objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        "huge number": b'{"format": ' + b"9" * 100_000 + b"}",
        "NaN": b'{"format": NaN}',
        "duplicate key": b'{"format": 1, "format": 2}',
        "5 MB": b'{"a": "' + b"x" * (5 << 20) + b'"}',
        "many empty lists": b"[" + b"[]," * 1_000_000 + b"[]]",
        "NUL": valid + b"\0",
    }


def adapters(sound: Path) -> Iterator[Case]:
    """Records of our own adapters."""
    ours = sound / "ours"
    valid = (ours / "adapter.json").read_bytes()

    def case(name: str, change: Callable[[dict[str, Any]], Any], refused: bool | None = True) -> Case:
        return Case(f"adapter/record/{name}", "adapter", changed(ours, "adapter.json", change, True), refused)

    for name, data in broken_json(valid).items():
        yield case(name, lambda record, data=data: data)
    for method in ("nope", CANARY, "../lora", "__init__", "", None, 3, ["lora"], "x" * 10_000):
        yield case(f"method {str(method)[:20]!r} {type(method).__name__}", put("method", value=method))
    for key in ("branch", "base", "sites", "format"):
        for value in ODD:
            same = (key, value) in (("branch", {}), ("sites", []), ("format", True))  # True is 1
            yield case(f"{key} {value!r}", put(key, value=value), None if same else True)
    for key in ("name", "kind", "n_in", "n_out", "scale", "behind", "blocks"):
        for value in (None, "x", -1, 10**30, [], {}, 1e400):
            yield case(f"site {key} {value!r}", put("sites", 0, key, value=value), None)
        yield case(f"site without {key}", lambda record, key=key: record["sites"][0].pop(key) and None, None)
    for value in (
        None,
        [1],
        [{}],
        [{"label": "a", "size": 2**40, "live": True}],
        [{"label": "a", "size": -1, "live": True}],
    ):
        yield case(f"blocks {value!r}", put("sites", 0, "blocks", value=value))
    for key, value in (("label", {}), ("label", "x" * 10**6), ("size", 10**12), ("size", "8"), ("live", "yes")):
        yield case(f"block {key} {str(value)[:20]!r}", put("sites", 0, "blocks", 0, key, value=value), None)
    for key in ("gate", "form", "init", "scale", "dropout"):
        for value in (STALL, {STALL: 1}, 10**30, None, [CANARY]):
            yield case(f"branch {key} {value!r}", put("branch", key, value=value), None)
    yield case("sites named twice", lambda record: record["sites"].append(record["sites"][0]), None)
    yield case("20,000 sites", lambda record: record["sites"].extend(record["sites"][:1] * 20_000), None)
    yield case("site called by a regular expression", put("sites", 0, "name", value=STALL))
    for file in ("/etc/passwd", "../../outside/ours/adapter.safetensors"):
        yield Case(f"adapter/link {file}", "adapter", linked(ours, "adapter.safetensors", file), True)
    yield Case("adapter/a pipe", "adapter", special(ours, "adapter.safetensors", os.mkfifo), True)
    yield Case("adapter/a folder for a file", "adapter", special(ours, "adapter.safetensors", os.mkdir), True)
    yield Case("adapter/manifest names another folder", "adapter", other_manifest(ours), True)


def linked(source: Path, name: str, target: str) -> Callable[[Path], str]:
    def write(folder: Path) -> str:
        place = copied(source, folder, source.name)
        (place / name).unlink()
        (place / name).symlink_to(target)
        return place.name

    return write


def special(source: Path, name: str, make: Callable[[Path], None]) -> Callable[[Path], str]:
    def write(folder: Path) -> str:
        place = copied(source, folder, source.name)
        (place / name).unlink()
        make(place / name)
        return place.name

    return write


def other_manifest(source: Path) -> Callable[[Path], str]:
    def write(folder: Path) -> str:
        place = copied(source, folder, source.name)
        manifest = json.loads((place / MANIFEST).read_text())
        manifest["files"]["../../outside/ours/adapter.safetensors"] = manifest["files"].pop("adapter.safetensors")
        (place / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n")
        return place.name

    return write


def pefts(sound: Path) -> Iterator[Case]:
    """Checkpoints of PEFT."""
    peft = sound / "peft"
    valid = (peft / "adapter_config.json").read_bytes()

    def case(name: str, change: Callable[[dict[str, Any]], Any], refused: bool | None = None) -> Case:
        return Case(f"peft/config/{name}", "adapter", changed(peft, "adapter_config.json", change, False), refused)

    for name, data in broken_json(valid).items():
        yield case(name, lambda record, data=data: data, True)
    for key in ("target_modules", "exclude_modules", "layers_pattern", "modules_to_save"):
        yield case(f"{key} stalls", put(key, value=STALL))
        yield case(f"{key} of stalls", put(key, value=[STALL] * 100))
    for key in ("alpha_pattern", "rank_pattern"):
        yield case(f"{key} stalls", put(key, value={STALL: 8}), True if key == "alpha_pattern" else None)
        yield case(f"{key} of odd values", put(key, value={"0": "x"}))
        yield case(f"{key} no table", put(key, value=[STALL]))
    library = {"parent_library": CANARY, "base_model_class": "Base"}
    yield case("auto_mapping names a module", put("auto_mapping", value=library))
    yield case("megatron names a module", lambda r: r.update(megatron_core=CANARY, megatron_config={"a": 1}))
    yield case("runtime_config", put("runtime_config", value={"ephemeral_gpu_offload": True}))
    yield case("tokenizer arguments", put("tokenizer_kwargs", value={"trust_remote_code": True}), True)
    for key in ("lora_alpha", "lora_dropout", "r", "use_dora", "use_rslora", "init_lora_weights", "peft_type"):
        for value in (None, "x", [], {}, -1, 10**30, b"NaN", b"1e999"):
            raw = value.decode() if isinstance(value, bytes) else json.dumps(value)
            text = json.dumps({**json.loads(valid), key: "@"}).replace('"@"', raw).encode()
            yield case(f"{key} {raw}", lambda record, text=text: text)
    for value in ("x", [10**9], [-5], [1.5], {"0": [0]}, [None], {"0": "x"}):
        yield case(f"trainable tokens {value!r}", put("trainable_token_indices", value=value))
    for name in ("../../../etc", "/etc", "hub:x", CANARY, "", None, 5):
        yield case(f"base {name!r}", put("base_model_name_or_path", value=name))
    for key in (CANARY, "corda_config", "__class__", "x" * 1000):
        yield case(f"unknown key {key[:20]}", put(key, value={"a": 1}), True)
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        for target in ("/etc/passwd", f"../../outside/peft/{name}", "/dev/zero"):
            yield Case(f"peft/{name} leads to {target}", "adapter", linked(peft, name, target), True)
        yield Case(f"peft/{name} is a pipe", "adapter", special(peft, name, os.mkfifo), True)
        yield Case(f"peft/{name} is a folder", "adapter", special(peft, name, os.mkdir), True)
    yield Case("peft/a pickle alone", "adapter", peft_pickle(peft, "adapter_model.bin"), True)
    yield Case("peft/a pickle under the safe name", "adapter", peft_pickle(peft, "adapter_model.safetensors"), True)


def peft_pickle(source: Path, name: str) -> Callable[[Path], str]:
    def write(folder: Path) -> str:
        place = copied(source, folder, "peft")
        for file in ("adapter_model.safetensors", MANIFEST, "provenance.json"):
            (place / file).unlink(missing_ok=True)
        (place / name).write_bytes(pickle.dumps(Escape()))
        return "peft"

    return write


# Configs.


def written(name: str, data: bytes | str) -> Callable[[Path], str]:
    def write(folder: Path) -> str:
        (folder / name).write_bytes(data if isinstance(data, bytes) else data.encode("utf-8", "surrogatepass"))
        return name

    return write


def configs() -> Iterator[Case]:
    """Files of a run."""

    def case(name: str, data: bytes | str, refused: bool | None = True) -> Case:
        return Case(f"config/{name}", "config", written("c.toml", data), refused)

    yield case("empty", "", None)
    yield case("not UTF-8", b"\xff\xfe\0")
    yield case("NUL", "seed = 1\0")
    yield case("BOM", b"\xef\xbb\xbfseed = 1\n", None)
    yield case("random bytes", random.Random(1).randbytes(5000))
    yield case("half", "[stream]\nkind = 'inst")
    yield case("duplicate key", "seed = 1\nseed = 2\n")
    yield case("duplicate table", "[train]\nlr = 1\n[train]\nlr = 2\n")
    yield case("deep lists", "strategy = " + "[" * 100_000 + "]" * 100_000)
    yield case("500 deep lists", "strategy = " + "[" * 500 + "]" * 500)
    yield case("deep tables", "strategy = " + "{a=" * 50_000 + "1" + "}" * 50_000)
    yield case("deep dotted key", ".".join("a" * 20_000) + " = 1")
    yield case("deep header", "[" + ".".join("a" * 20_000) + "]")
    yield case("huge number", "seed = " + "9" * 100_000)
    yield case("huge hexadecimal", "seed = 0x" + "f" * 100_000)
    yield case("huge exponent", "train.lr = 1e999999999")
    yield case("40 MB", "# " + "x" * (40 << 20))
    yield case("100,000 keys", "".join(f"k{i} = 1\n" for i in range(100_000)))
    yield case("100,000 strategies", "[[strategy]]\nkind = 'l2'\n" * 100_000)
    yield case("a million sites", "adapter.sites = [" + "'a'," * 1_000_000 + "]")
    yield case("sites of regular expressions", f"adapter.sites = ['{STALL}']", None)
    yield case("glob that stalls", "adapter.sites = ['" + "*a" * 5000 + "']", None)
    for value in ("inf", "-inf", "nan", "1e400", "true", "1979-05-27", "[]", "{}", "''"):
        yield case(f"lr {value}", f"train.lr = {value}")
        yield case(f"rank {value}", f"adapter.rank = {value}")
    yield case("rank of 10^18", "adapter.rank = 1000000000000000000", None)
    yield case("device of a library", f"train.device = '{CANARY}'")
    for name in ("__class__", "__init__", "model_config", "__dict__", CANARY):
        yield case(f"key {name}", f"{name} = 1")
        yield case(f"method {name}", f"method = '{name}'")
        yield case(f"strategy {name}", f"strategy = [{{kind = '{name}'}}]")
        yield case(f"init {name}", f"adapter.init = '{name}'")
    yield case("class to make", f"[objective]\nkind = 'classify'\n_target_ = '{CANARY}.run'")
    yield case("python tag", f"strategy = ['!!python/object/apply:{CANARY}.run']")
    for word in WORDS[:6]:
        yield case(f"stream called {word!r}", f"stream.name = {json.dumps(word)}")
        yield case(f"rows in {word!r}", f"stream.name = 'x'\nstream.train = {json.dumps(word)}", None)
    yield case("remote code for what is not there", "model.name = './base'\nmodel.trust_remote_code = true")


# Tables.


def tables() -> Iterator[Case]:
    """Rows as text and as Parquet."""

    def case(name: str, data: bytes | str, refused: bool | None = True) -> Case:
        file = "rows." + name.split("/")[0]
        return Case(f"rows/{name}", "rows", written(file, data), refused)

    row = '{"input": "a text", "target": "b"}\n'
    lines: dict[str, tuple[bytes | str, bool | None]] = {
        "empty": ("", True),
        "blank lines": ("\n" * 100_000, True),
        "not UTF-8": (row.encode() + b"\xff\xfe\n", True),
        "half a line": (row * 3 + row[:10], True),
        "a list": (row + "[]\n", True),
        "deep": (row + "[" * 200_000 + "\n", True),
        "deep value": ('{"input": ' + "[" * 50_000 + "]" * 50_000 + ', "target": "b"}', True),
        "huge number": ('{"input": "a", "target": ' + "9" * 100_000 + "}", True),
        "big whole label": ('{"input": "a", "target": 99999999999999999999999999}\n' * 3, None),
        "NaN label": ('{"input": "a", "target": NaN}', True),
        "infinite label": ('{"input": "a", "target": Infinity}', True),
        "object label": ('{"input": "a", "target": {"a": 1}}', True),
        "lone surrogate": ('{"input": "\\ud800", "target": "\\ud800"}\n' * 4, True),
        "NUL in text": ('{"input": "a\\u0000b", "target": "b"}\n' * 4, None),
        "10,000 columns": (json.dumps({**{f"c{i}": 1 for i in range(10_000)}, "input": "a", "target": "b"}), None),
        "new columns in each row": ("".join(json.dumps({f"c{i}": 1}) + "\n" for i in range(3000)), True),
        "picture by path": ('{"input": {"path": "/etc/passwd"}, "target": "b"}', True),
        "picture of bytes": ('{"input": {"bytes": "abc"}, "target": "b"}', True),
        "split called ..": ('{"input": "a", "target": "b", "split": "../.."}\n' * 3, None),
        "a text of 10 MB": (json.dumps({"input": "x" * (10 << 20), "target": "b"}), None),
    }
    for name, (data, refused) in lines.items():
        yield case(f"jsonl/{name}", data, refused)
    head = "input,target\n"
    csvs: dict[str, tuple[bytes | str, bool | None]] = {
        "empty": ("", True),
        "header alone": (head, True),
        "NUL": (head + "a\0b,c\n", None),
        "open quote": (head + '"a,b\n' * 10, True),
        "long field": (head + "x" * 200_000 + ",b\n", True),
        "too many fields": (head + ",".join("a" * 10_000) + "\n", True),
        "header twice": ("input,input\na,b\n", True),
        "100,000 columns": (",".join(f"c{i}" for i in range(100_000)) + "\n", True),
        "huge label": (head + "a," + "9" * 5000 + "\n", None),
        "digits of another script": (head + "a,\u0661\u0662\n" * 4, None),
        "not UTF-8": (head.encode() + b"\xff,b\n", True),
        "one million empty lines": (head + "\n" * 1_000_000 + "a,b\n", None),
        "carriage returns": (head.replace("\n", "\r") + "a,b\rc,d\r", None),
    }
    for name, (data, refused) in csvs.items():
        yield case(f"csv/{name}", data, refused)
    parquet = sound_parquet()
    for name, data in {
        "empty": b"",
        "magic alone": b"PAR1PAR1",
        "half": parquet[: len(parquet) // 2],
        "no footer": parquet[:-8],
        "footer of 2 GB": parquet[:-8] + struct.pack("<I", 2**31 - 1) + b"PAR1",
        "footer of 4 GB": parquet[:-8] + struct.pack("<I", 2**32 - 1) + b"PAR1",
        "pickle": pickle.dumps(Escape()),
    }.items():
        yield case(f"parquet/{name}", data)
    for name, make in PARQUETS.items():
        yield Case(f"rows/parquet/{name}", "rows", make, True)
    for suffix in ("jsonl", "csv", "parquet", "npz"):
        yield Case(
            f"rows/{suffix}/a folder", "rows", lambda folder, s=suffix: _made(folder / f"rows.{s}", os.mkdir), True
        )
        yield Case(
            f"rows/{suffix}/a pipe", "rows", lambda folder, s=suffix: _made(folder / f"rows.{s}", os.mkfifo), True
        )
        for target in ("/dev/zero", "/dev/stdin"):
            yield Case(
                f"rows/{suffix}/{target}",
                "rows",
                lambda folder, s=suffix, t=target: _link(folder / f"rows.{s}", t),
                True,
            )
    for name in (
        "rows.pkl",
        "rows.pt",
        "rows.bin",
        "rows.npy",
        "rows.h5",
        "rows.yaml",
        "rows",
        "rows.jsonl.gz",
        "rows.py",
    ):
        yield Case(f"rows/{name}", "rows", written(name, pickle.dumps(Escape())), True)


def _made(path: Path, make: Callable[[Path], None]) -> str:
    make(path)
    return path.name


def _link(path: Path, target: str) -> str:
    path.symlink_to(target)
    return path.name


def sound_parquet(rows: int = 8) -> bytes:
    import pyarrow
    import pyarrow.parquet

    buffer = io.BytesIO()
    table = pyarrow.table({"input": [f"text {i}" for i in range(rows)], "target": ["a", "b"] * (rows // 2)})
    pyarrow.parquet.write_table(table, buffer)
    return buffer.getvalue()


def _parquet(columns: Callable[[], dict[str, Any]]) -> Callable[[Path], str]:
    def write(folder: Path) -> str:
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.table(columns()), folder / "rows.parquet", compression="zstd")
        return "rows.parquet"

    return write


def _dictionary(rows: int, size: int) -> dict[str, Any]:
    import pyarrow

    index = pyarrow.array(np.zeros(rows, dtype=np.int32))
    text = pyarrow.DictionaryArray.from_arrays(index, pyarrow.array(["x" * size]))
    return {"input": text, "target": text}


PARQUETS: dict[str, Callable[[Path], str]] = {
    "20 million equal rows": _parquet(lambda: _dictionary(20_000_000, 3)),
    "2,000 rows of a megabyte": _parquet(lambda: _dictionary(2000, 1 << 20)),
    "pictures by path": _parquet(
        lambda: {"input": [{"bytes": None, "path": "/etc/passwd"}] * 4, "target": ["a", "b"] * 2}
    ),
    "no columns": _parquet(dict),
    "lists for texts": _parquet(lambda: {"input": [["a"], ["b"]], "target": ["a", "b"]}),
}


# Archives of arrays.


def npz(entries: dict[str, bytes], **how: Any) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, **how) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def npy(header: str, data: bytes = b"", version: int = 1, length: int | None = None) -> bytes:
    text = header.encode() + b"\n"
    size = len(text) if length is None else length
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H" if version == 1 else "<I", size) + text + data


def array(shape: str, descr: str = "|u1", data: bytes = b"", order: str = "False") -> bytes:
    return npy(f"{{'descr': '{descr}', 'fortran_order': {order}, 'shape': {shape}, }}", data)


def archives() -> Iterator[Case]:
    """Archives of arrays, as numpy writes them."""
    buffer = io.BytesIO()
    np.savez(buffer, input=np.zeros((4, 2, 2), np.uint8), target=np.array([0, 1, 0, 1]))
    whole = buffer.getvalue()
    labels = array("(4,)", data=b"\0\1\0\1")

    def case(name: str, data: bytes, refused: bool | None = True) -> Case:
        return Case(f"rows/npz/{name}", "rows", written("rows.npz", data), refused)

    yield case("empty", b"")
    yield case("half", whole[: len(whole) // 2])
    yield case("a flipped byte", whole[:60] + bytes([whole[60] ^ 255]) + whole[61:], None)
    yield case("an array alone", array("(4,)", data=b"abcd"))
    for name, shape in (
        ("2^40", "(1099511627776,)"),
        ("2^62", "(4611686018427387904,)"),
        ("wraps", "(4294967296,) * 2"),
    ):
        yield case(f"shape {name}", npz({"input.npy": array(shape), "target.npy": labels}))
    yield case("shape of a huge number", npz({"input.npy": array("(" + "9" * 3000 + ",)"), "target.npy": labels}))
    yield case("shape of zero and 10^12", npz({"input.npy": array("(0, 1000000000000)"), "target.npy": array("(0,)")}))
    yield case("negative shape", npz({"input.npy": array("(-4,)"), "target.npy": labels}))
    yield case("objects", npz({"input.npy": array("(4,)", "|O", pickle.dumps(Escape())), "target.npy": labels}))
    yield case("code for a header", npz({"input.npy": npy(f"__import__('{CANARY}')"), "target.npy": labels}))
    yield case("deep header", npz({"input.npy": npy("(" * 5000 + ")" * 5000), "target.npy": labels}))
    yield case("header of 4 GB", npz({"input.npy": npy("{}", b"", 2, 2**32 - 1), "target.npy": labels}))
    zeros = b"\0" * (64 << 20)
    yield case(
        "512 MB of zeros", npz({f"{i}.npy": array(f"({64 << 20},)", data=zeros) for i in range(8)}, compresslevel=9)
    )
    yield case("20,000 arrays", npz({f"a{i}.npy": labels for i in range(20_000)}))
    yield case("encrypted", encrypted(whole))
    yield case("unknown compression", method(whole, 99))
    yield case("names that leave", npz({"../../input.npy": labels, "/etc/target.npy": labels}), None)
    yield case(
        "structured",
        npz(
            {
                "input.npy": npy("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (4,)}", b"\0" * 16),
                "target.npy": labels,
            }
        ),
    )
    for name, text in (("dates", "<M8[s]"), ("void", "|V8"), ("text of 2^30", "<U1073741824"), ("complex", "<c16")):
        yield case(
            f"labels of {name}",
            npz({"input.npy": array("(4, 1, 1)", data=b"abcd"), "target.npy": array("(4,)", text, b"\0" * 64)}),
        )
    yield case("no labels", npz({"x_train.npy": array("(4, 1, 1)", data=b"abcd")}))
    yield case("a label alone", npz({"input.npy": array("()", data=b"a"), "target.npy": array("()", data=b"a")}))
    yield case(
        "names beyond the labels",
        npz(
            {
                "input.npy": array("(4, 1, 1)", data=b"abcd"),
                "target.npy": labels,
                "class_names.npy": array("(1,)", "<U1", b"a\0\0\0"),
            }
        ),
    )
    yield case(
        "names of names",
        npz(
            {
                "input.npy": array("(4, 1, 1)", data=b"abcd"),
                "target.npy": labels,
                "target_names.npy": array("(1,)", "<U1", b"a\0\0\0"),
            }
        ),
        None,
    )


def encrypted(data: bytes) -> bytes:
    """Say of every entry that it is encrypted."""
    changed_ = bytearray(data)
    for sign, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = data.find(sign)
        while at >= 0:
            changed_[at + place] |= 1
            at = data.find(sign, at + 4)
    return bytes(changed_)


def method(data: bytes, number: int) -> bytes:
    """Say of every entry that it is compressed in some other way."""
    changed_ = bytearray(data)
    for sign, place in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
        at = data.find(sign)
        while at >= 0:
            changed_[at + place] = number
            at = data.find(sign, at + 4)
    return bytes(changed_)


# Pictures.


def png(width: int = 4, height: int = 4, data: bytes | None = None, extra: bytes = b"", colour: int = 0) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)
    lines = zlib.compress(b"".join(b"\0" + b"\x7f" * width for _ in range(height))) if data is None else data
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + extra + chunk(b"IDAT", lines) + chunk(b"IEND", b"")


def chunk_text(size: int) -> bytes:
    body = b"note\0\0" + zlib.compress(b"x" * size)
    return struct.pack(">I", len(body)) + b"zTXt" + body + struct.pack(">I", zlib.crc32(b"zTXt" + body))


def pictures() -> Iterator[Case]:
    """Folders of pictures, and saved data sets."""

    def folder_of(name: str, data: bytes, refused: bool | None = True, declared: int = 0) -> Case:
        def write(folder: Path) -> str:
            for label, picture in (("cat", png()), ("dog", data)):
                (folder / "it" / label).mkdir(parents=True)
                (folder / "it" / label / ("b.png" if label == "dog" else "a.png")).write_bytes(picture)
            return "it"

        return Case(f"pictures/{name}", "rows", write, refused, declared)

    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(" + CANARY.encode() + b") (w) file closefile\n%%EOF\n"
    for name, data in {
        "empty": b"",
        "text": b"no picture",
        "pickle": pickle.dumps(Escape()),
        "PostScript": script,
        "PDF": b"%PDF-1.4\n1 0 obj\n",
        "SVG": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
        "half": png(64, 64)[:60],
        "no data": png(data=b""),
        "rows missing": png(64, 64, zlib.compress(b"\0")),
        "100,000 x 100,000": png(100_000, 100_000, zlib.compress(b"\0")),
        "2^31 wide": png(2**31 - 1, 1, zlib.compress(b"\0")),
        "no size": png(0, 0, zlib.compress(b"")),
        "palette missing": png(colour=3),
        "GIF of no size": b"GIF89a\0\0\0\0\0\0\0",
        "GIF 65,535 x 65,535": b"GIF89a"
        + b"\xff" * 4
        + b"\x80"
        + b"\0" * 5
        + b"\xff" * 3
        + b",\0\0\0\0"
        + b"\xff" * 4
        + b"\0\x02\x02D\x01\0;",
        "BMP of 2^31": b"BM"
        + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 2**31 - 1, 2**31 - 1, 1, 24, 0, 0, 0, 0, 0, 0),
        "TIFF that loops": b"II*\0\x08\0\0\0\0\0\x08\0\0\0",
        "WebP of nothing": b"RIFF\xff\xff\xff\xffWEBPVP8 ",
        "JPEG cut": b"\xff\xd8\xff\xe0\0\x10JFIF\0\1\1\0\0\1\0\1\0\0",
        "ICO": b"\0\0\1\0\1\0\x10\x10\0\0\1\0\x18\0\xff\xff\0\0\x16\0\0\0",
        "PPM of 10^9": b"P6 1000000000 1000000000 255\n",
        "PPM with a long number": b"P6 " + b"9" * 100_000 + b" 1 255\n",
    }.items():
        yield folder_of(name, data, None if name == "palette missing" else True)
    yield folder_of("64 MB of a note", png(extra=chunk_text(64 << 20)))
    yield folder_of("49 megapixels", png(7000, 7000), None, 7000 * 7000 + 16)
    yield folder_of("64 megapixels declared, none there", png(8000, 8000, zlib.compress(b"\0")), True)
    for target in ("/etc/hostname", "../../../outside/it/cat/a.png", "/dev/zero"):
        yield Case(f"pictures/leads to {target}", "rows", picture_link(target), True)
    yield Case("pictures/a class leads outside", "rows", class_link, True)
    yield Case("pictures/a pipe", "rows", picture_pipe, True)
    yield Case("pictures/a class called a\\nb", "rows", strange_class, None)
    yield from saved_sets()


def picture_link(target: str) -> Callable[[Path], str]:
    def write(folder: Path) -> str:
        for label in ("cat", "dog"):
            (folder / "it" / label).mkdir(parents=True)
        (folder / "it" / "cat" / "a.png").write_bytes(png())
        (folder / "it" / "dog" / "b.png").symlink_to(target)
        return "it"

    return write


def class_link(folder: Path) -> str:
    (folder / "it" / "cat").mkdir(parents=True)
    (folder / "it" / "cat" / "a.png").write_bytes(png())
    (folder / "it" / MARK).symlink_to("../../outside/it/cat")
    return "it"


def picture_pipe(folder: Path) -> str:
    (folder / "it" / "cat").mkdir(parents=True)
    os.mkfifo(folder / "it" / "cat" / "a.png")
    return "it"


def strange_class(folder: Path) -> str:
    for label in ("a\nb", "..."):
        (folder / "it" / label).mkdir(parents=True)
        (folder / "it" / label / "a.png").write_bytes(png())
    return "it"


def saved_sets() -> Iterator[Case]:
    """Folders that `datasets` wrote, or so they say."""

    def of(change: Callable[[Path], None]) -> Callable[[Path], str]:
        def write(folder: Path) -> str:
            import datasets

            held = datasets.Dataset.from_dict({"input": ["a", "b"] * 4, "target": ["x", "y"] * 4})
            datasets.disable_progress_bars()
            held.save_to_disk(str(folder / "it"))
            change(folder / "it")
            return "it"

        return write

    def state(**values: Any) -> Callable[[Path], None]:
        def change(place: Path) -> None:
            record = json.loads((place / "state.json").read_text())
            (place / "state.json").write_text(json.dumps(record | values))

        return change

    def info(**values: Any) -> Callable[[Path], None]:
        def change(place: Path) -> None:
            record = json.loads((place / "dataset_info.json").read_text())
            (place / "dataset_info.json").write_text(json.dumps(record | values))

        return change

    outside = [{"filename": "../../outside/saved/data-00000-of-00001.arrow"}]
    yield Case("saved/rows outside", "rows", of(state(_data_files=outside)), True)
    yield Case("saved/rows of the system", "rows", of(state(_data_files=[{"filename": "/etc/passwd"}])), True)
    yield Case("saved/no rows", "rows", of(state(_data_files=[])), True)
    yield Case("saved/indices outside", "rows", of(state(_indices_data_files=outside)), True)
    yield Case("saved/format", "rows", of(state(_format_type=CANARY)), True)
    yield Case(
        "saved/feature of a class",
        "rows",
        of(info(features={"input": {"_type": CANARY}, "target": {"_type": "Value"}})),
        True,
    )
    yield Case("saved/feature of a number", "rows", of(info(features=3)), True)
    yield Case("saved/half of the rows", "rows", of(lambda p: _halve(next(p.glob("*.arrow")))), True)
    for file in ("state.json", "dataset_info.json"):
        for name, data in broken_json(b"{}").items():
            if name in ("deep lists", "huge number", "a list", "empty", "nothing"):
                yield Case(f"saved/{file} {name}", "rows", of(lambda p, f=file, d=data: (p / f).write_bytes(d)), True)
    yield Case("saved/parts outside", "rows", dictionary_outside, True)


def _halve(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def dictionary_outside(folder: Path) -> str:
    (folder / "it").mkdir()
    (folder / "it" / "dataset_dict.json").write_text(json.dumps({"splits": ["../../outside/saved"]}))
    return "it"


# Bases.


def bases(sound: Path) -> Iterator[Case]:
    """Folders in the layout of Hugging Face."""
    base = sound / "base"

    def case(name: str, file: str, change: Callable[[dict[str, Any]], Any], refused: bool | None = None) -> Case:
        return Case(f"base/{name}", "base", changed(base, file, change, False), refused)

    for name, data in broken_json((base / "config.json").read_bytes()).items():
        yield case(f"config {name}", "config.json", lambda record, data=data: data, True)
    for name, data in broken_json((base / "tokenizer.json").read_bytes()).items():
        yield case(f"tokenizer {name}", "tokenizer.json", lambda record, data=data: data, True)
    for name in ("a list", "deep lists", "half", "huge number"):
        data = broken_json(b"{}")[name]
        yield case(f"tokenizer_config {name}", "tokenizer_config.json", lambda record, data=data: data, True)
    remote = {"AutoConfig": "evil.Config", "AutoModel": "evil.Model", "AutoTokenizer": ["evil.T", None]}
    for file in ("config.json", "tokenizer_config.json"):
        yield Case(f"base/{file} brings code", "base", brings_code(base, file, remote), None)
        yield Case(
            f"base/{file} names a repository's code",
            "base",
            brings_code(base, file, {k: f"evil/repo--{v}" for k, v in remote.items()}),
            None,
        )
    for key in (
        "_attn_implementation",
        "_attn_implementation_internal",
        "attn_implementation",
        "_experts_implementation",
    ):
        for value in ("evil/kernels", CANARY, 3):
            yield case(f"{key} {value}", "config.json", put(key, value=value))
    for key in ("dtype", "torch_dtype"):
        for value in ("load", "hub", "float64", "nope", 3, {"": CANARY}):
            yield case(f"{key} {value}", "config.json", put(key, value=value))
    for value in (
        {"quant_method": CANARY},
        {"quant_method": "bitsandbytes", "load_in_4bit": True},
        {"quant_method": "gptq", "bits": 4},
        3,
        {},
    ):
        yield case(f"quantization {value}", "config.json", put("quantization_config", value=value))
    for value in (
        CANARY,
        "../bert",
        "__init__",
        "",
        None,
        3,
        "adapter",
        "encoder-decoder",
        "timm_wrapper",
        "timm_backbone",
    ):
        yield case(f"model_type {value}", "config.json", put("model_type", value=value), True)
    for value in (["os.system"], [CANARY], "x", 3):
        yield case(f"architectures {value}", "config.json", put("architectures", value=value))
    for key in (
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "vocab_size",
        "max_position_embeddings",
    ):
        for value in (10**6, 10**9, 10**18, -1, 0, "x", None):
            yield case(f"{key} {value}", "config.json", put(key, value=value))
    for key in (
        "hidden_act",
        "position_embedding_type",
        "is_decoder",
        "add_cross_attention",
        "auto_map",
        "pruned_heads",
    ):
        for value in (CANARY, STALL, {"0": [0]}, 10**9):
            yield case(f"{key} {str(value)[:20]}", "config.json", put(key, value=value))
    for value in (CANARY, "PreTrainedTokenizer", "../x", 3):
        yield case(f"tokenizer_class {value}", "tokenizer_config.json", put("tokenizer_class", value=value))
    for value in (10**30, -1, "x", None):
        yield case(f"model_max_length {value}", "tokenizer_config.json", put("model_max_length", value=value))
    for key in ("model", "pre_tokenizer", "post_processor", "normalizer", "added_tokens"):
        for value in (None, 3, "x", {"type": CANARY}, [{"id": 2**40, "content": "a"}]):
            yield case(f"tokenizer {key} {value}", "tokenizer.json", put(key, value=value))
    for name in ("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"):
        for target in ("/etc/passwd", f"../../outside/base/{name}", "/dev/zero"):
            yield Case(f"base/{name} leads to {target}", "base", linked(base, name, target), True)
        yield Case(f"base/{name} is a pipe", "base", special(base, name, os.mkfifo), True)
    for name, index in {
        "outside": {"weight_map": {"a": "../../outside/base/model.safetensors"}},
        "of the system": {"weight_map": {"a": "/etc/passwd"}},
        "a pickle": {"weight_map": {"a": "pytorch_model.bin"}},
        "no map": {},
        "a list": [],
        "odd": {"weight_map": {"a": 3}},
        "missing": {"weight_map": {"a": "model-00001-of-00002.safetensors"}},
    }.items():
        yield Case(f"base/index {name}", "base", with_index(base, index), True)
    yield Case("base/a pickle alone", "base", base_pickle(base), True)
    yield Case("base/an adapter beside", "base", beside_adapter(base), True)
    yield Case("base/nothing", "base", lambda folder: _made(folder / "base", os.mkdir), True)


def brings_code(base: Path, file: str, where: dict[str, Any]) -> Callable[[Path], str]:
    def write(folder: Path) -> str:
        place = copied(base, folder, "base")
        record = json.loads((place / file).read_text())
        (place / file).write_text(json.dumps(record | {"auto_map": where, "model_type": record.get("model_type", "x")}))
        (place / "evil.py").write_text(f"import {CANARY}\n")
        return "base"

    return write


def with_index(base: Path, index: Any) -> Callable[[Path], str]:
    def write(folder: Path) -> str:
        place = copied(base, folder, "base")
        (place / "model.safetensors").rename(place / "other.safetensors")
        (place / "pytorch_model.bin").write_bytes(pickle.dumps(Escape()))
        (place / "model.safetensors.index.json").write_text(json.dumps(index))
        return "base"

    return write


def base_pickle(base: Path) -> Callable[[Path], str]:
    def write(folder: Path) -> str:
        place = copied(base, folder, "base")
        (place / "model.safetensors").unlink()
        (place / "pytorch_model.bin").write_bytes(torch_archive())
        return "base"

    return write


def beside_adapter(base: Path) -> Callable[[Path], str]:
    def write(folder: Path) -> str:
        place = copied(base, folder, "base")
        config = {"peft_type": "LORA", "auto_mapping": {"parent_library": CANARY, "base_model_class": "A"}}
        (place / "adapter_config.json").write_text(json.dumps(config))
        return "base"

    return write


# Runs.


def runs(sound: Path) -> Iterator[Case]:
    """Folders of runs."""
    run = sound / "run"

    def case(name: str, change: Callable[[Path], Any], refused: bool | None = True) -> Case:
        def write(folder: Path) -> str:
            change(copied(run, folder, "run"))
            return "run"

        return Case(f"run/{name}", "run", write, refused)

    for file in ("environment.json", "undo.json"):
        for name, data in broken_json(b'{"task": "a", "number": 1, "events": 0}').items():
            if name != "many empty lists":
                yield case(f"{file} {name}", lambda p, f=file, d=data: (p / f).write_bytes(d))
    for key, value in (("number", 10**30), ("number", "x"), ("events", -5), ("events", 10**30), ("events", None)):
        record, harmless = {"task": "a", "number": 1, "events": 0, key: value}, value == 10**30
        refused = None if harmless else True
        yield case(f"undo {key} {value}", lambda p, r=record: (p / "undo.json").write_text(json.dumps(r)), refused)
    for name, data in broken_json(b'{"event": "task", "task": "a"}').items():
        yield case(f"events {name}", lambda p, d=data: (p / "events.jsonl").write_bytes(d + b"\n"), None)
    for name in ("step-" + "9" * 200, "step--1", "step-00000001x", "step-\u0661"):
        yield case(f"snapshot called {name[:20]}", lambda p, n=name: (p / "checkpoints" / n).mkdir(), None)
    yield case(
        "snapshot leads outside",
        lambda p: (p / "checkpoints" / "step-99999999").symlink_to("../../../outside/ours"),
        None,
    )
    yield case("snapshots lead outside", snapshots_outside)
    for key in ("progress", "learner", "events", "kept"):
        for value in (None, "x", [], {}, 10**30, {"task": "x"}):
            yield case(f"state {key} {value!r}", state_of(key, value), None)
    other = ("config.toml", 'method = "lora"', 'method = "mora"')
    yield case("config of another method", lambda p: _replaced(p / other[0], *other[1:]), None)
    yield case("config of a canary", lambda p: _replaced(p / "config.toml", 'method = "lora"', f'method = "{CANARY}"'))
    yield case(
        "config names an outer base", lambda p: _replaced(p / "config.toml", "embedded:vit", "../../outside/base")
    )
    for name in ("adapter.json", "adapter.safetensors", "config.toml", "environment.json", "events.jsonl"):
        place = "adapter/" if name.startswith("adapter") else ""
        yield case(f"{name} is a pipe", lambda p, n=place + name: _pipe(p / n))


def _replaced(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def _pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def snapshots_outside(place: Path) -> None:
    shutil.rmtree(place / "checkpoints")
    (place / "checkpoints").symlink_to("../../outside")


def state_of(key: str, value: Any) -> Callable[[Path], None]:
    """The newest snapshot with something odd in it, and a manifest that agrees."""

    def change(place: Path) -> None:
        newest = sorted((place / "checkpoints").iterdir())[-1]
        record = json.loads((newest / "state.json").read_text())
        (newest / "state.json").write_text(json.dumps(record | {key: value}))
        sealed(newest, "snapshot")

    return change


# Mutations of what is sound.


def mutated(data: bytes, rng: random.Random) -> bytes:
    """Bytes turned over, cut out, doubled or moved, a few at a time."""
    changed_ = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        if not changed_:
            break
        at, size = rng.randrange(len(changed_)), rng.choice((1, 1, 4, 64))
        how = rng.randrange(5)
        if how == 0:
            changed_[at] ^= 1 << rng.randrange(8)
        elif how == 1:
            del changed_[at : at + size]
        elif how == 2:
            changed_[at:at] = changed_[at : at + size]
        elif how == 3:
            changed_[at : at + size] = rng.randbytes(size)
        else:
            changed_[at : at + 1] = rng.choice((b"9" * 30, b'"', b"{", b"}", b"[", b"-1", b"null", b"\0", b"1e999"))
    return bytes(changed_)


def mutations(sound: Path) -> Iterator[Case]:
    """Sound files with seeded harm: eight of each."""
    rng = random.Random(7)
    buffer = io.BytesIO()
    np.savez(buffer, input=np.zeros((4, 2, 2), np.uint8), target=np.array([0, 1, 0, 1]))
    rows = "".join(json.dumps({"input": f"text {i}", "target": "ab"[i % 2]}) + "\n" for i in range(6)).encode()
    loose = {
        "rows.jsonl": rows,
        "rows.csv": b"input,target\n" + b"".join(b'"text, %d",%d\n' % (i, i % 2) for i in range(6)),
        "rows.parquet": sound_parquet(),
        "rows.npz": buffer.getvalue(),
    }
    for name, data in loose.items():
        for i in range(8):
            yield Case(f"mutated/{name} {i}", "rows", written(name, mutated(data, rng)))
    config = (sound / "run" / "config.toml").read_bytes()
    yield from (Case(f"mutated/config {i}", "config", written("c.toml", mutated(config, rng))) for i in range(12))
    within = [
        *((sound / "ours", name, "adapter") for name in ("adapter.json", "adapter.safetensors")),
        *((sound / "peft", name, "adapter") for name in ("adapter_config.json", "adapter_model.safetensors")),
        *((sound / "base", name, "base") for name in ("config.json", "tokenizer.json", "tokenizer_config.json")),
        (sound / "base", "model.safetensors", "base"),
    ]
    for source, name, kind in within:
        for i in range(8):
            data = mutated((source / name).read_bytes(), rng)
            yield Case(f"mutated/{source.name}/{name} {i}", kind, harmed(source, name, data))


def harmed(source: Path, name: str, data: bytes) -> Callable[[Path], str]:
    def write(folder: Path) -> str:
        place = copied(source, folder, source.name)
        (place / name).write_bytes(data)
        if source.name == "ours":
            return sealed(place)
        for file in (MANIFEST, "provenance.json"):
            (place / file).unlink(missing_ok=True)
        return place.name

    return write
