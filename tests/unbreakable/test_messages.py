"""Errors that no other test provokes: each says what is wrong, where, and what to do."""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hostile import PARQUETS

from rankwise.cli import main
from rankwise.config import load_config
from rankwise.errors import DataError, RankwiseError, StorageError, UsageError
from rankwise.files import check_plain, load_json
from rankwise.storage import newest_valid
from rankwise.streams.building import build_stream
from rankwise.streams.sources import read


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('train.device = "gpu"', r"train.device: 'gpu' is no device; did you mean 'cuda'\?"),
        ("strategy = " + "[" * 40 + "]" * 40, "is nested more than 16 deep; no key of a config is"),
        ("strategy = " + "[" * 5000 + "]" * 5000, "cannot be read as TOML: it is nested too deeply"),
        ("# " + "x" * (1 << 20), "is larger than the 1048576 bytes a config may have; name the right file"),
        (".".join("a" * 300) + " = 1", "line 1: over 200 dots before the value; no key has so many"),
        ("seed = " + "9" * 30, "a whole number of more than 63 bits, which TOML has none of"),
        ("".join(f"k{i} = 1\n" for i in range(50)), "and 30 more"),
        ('model.name = "https://me:secret@host/x"', "model.name holds a token or a password, which would be recorded"),
    ],
)
def test_configs(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "c.toml").write_text(text)
    with pytest.raises(UsageError, match=said):
        load_config(tmp_path / "c.toml")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("export", "run", "--out", "x", "--to", "petf"), "--to 'petf': no such format; did you mean 'peft'?"),
        (("merge", "a", "--out", "x", "--base", "embedded:vti"), "--base 'embedded:vti': no such base; did you mean"),
        (("merge", "run", "--out", "x", "--base", "minilm"), "--base 'minilm': a run knows its base; leave it out"),
        (("merge", "a", "--out", "x", "--blocks", "b"), "--blocks: a has no block 'b'; (known: c)"),
        (("run", "c.toml", "--set", "strategy=[{a=1}]"), "'kind' is missing; add kind = ...; one of adalora"),
        (("run", "c.toml", "--set", "adapter.init=x"), "adapter.init = 'x': no such init; (known: adalora"),
    ],
)
def test_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys, words: tuple[str, ...], said: str) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("run", "a"):
        (tmp_path / folder).mkdir()
    (tmp_path / "run" / "config.toml").touch()
    (tmp_path / "c.toml").write_text('method = "lora"\n')
    (tmp_path / "a" / "adapter.json").write_text(json.dumps({"sites": [{"blocks": [{"label": "c"}]}]}))
    assert main(words) == 2
    assert said in capsys.readouterr().err


def test_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(StorageError, match="pipe: is no plain file; put a copy of the file itself there"):
        load_json(tmp_path / "pipe")
    (tmp_path / "inside").mkdir()
    (tmp_path / "secret").write_text("{}")
    (tmp_path / "inside" / "link").symlink_to("../secret")
    with pytest.raises(StorageError, match="link: is a link that leads out of its folder; put a copy of the file"):
        check_plain(tmp_path / "inside" / "link", tmp_path / "inside")
    check_plain(tmp_path / "inside" / "link")
    (tmp_path / "step-1").symlink_to("inside")
    assert newest_valid(tmp_path, kind="x", pattern="step-*") == (None, [f"refused {tmp_path / 'step-1'}: is a link"])


def test_a_hubs_cache_may_link_to_its_blobs(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "5a").write_text("{}")
    (tmp_path / "snapshots" / "1b").mkdir(parents=True)
    (tmp_path / "snapshots" / "1b" / "config.json").symlink_to("../../blobs/5a")
    check_plain(tmp_path / "snapshots" / "1b" / "config.json", tmp_path / "snapshots" / "1b")


def npz(**arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def swollen() -> bytes:
    buffer = io.BytesIO()
    header = b"\x93NUMPY\1\0" + (70).to_bytes(2, "little")
    text = b"{'descr': '|u1', 'fortran_order': False, 'shape': (99999999,)}"
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("input.npy", header + text.ljust(69) + b"\n")
    return buffer.getvalue()


IMAGES = np.zeros((2, 2, 2), np.uint8)


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("a.jsonl", b'{"input": "\\ud800", "target": "b"}', "line 1: half of a surrogate pair, which is no text"),
        (
            "a.jsonl",
            b'{"input": " ", "target": "b"}',
            "line 1, column 'input': the text is empty; fill or remove the row",
        ),
        (
            "a.npz",
            npz(input=IMAGES, target=np.array(1)),
            "'target' is one value, not one a row; give arrays with a row",
        ),
        (
            "a.npz",
            npz(input=IMAGES, target=np.array([0, 5]), target_names=np.array(["a"])),
            "'target' has values beyond the 1 of 'target_names'; name each value",
        ),
        ("a.npz", swollen(), "array 'input.npy' claims 99999999 bytes but holds 80"),
    ],
)
def test_rows(tmp_path: Path, name: str, data: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError) as caught:
        read(name, root=tmp_path)
    assert said in str(caught.value)


def test_files_that_swell(tmp_path: Path) -> None:
    PARQUETS["20 million equal rows"](tmp_path)
    with pytest.raises(DataError, match="says it has 20000000 rows, far beyond its size; write it again"):
        read("rows.parquet", root=tmp_path)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        for number in range(1001):
            archive.writestr(f"{number}.npy", b"")
    with pytest.raises(DataError, match="holds 1001 arrays, at most 1000 are read; write a row in an array"):
        read("a.npz", root=tmp_path)


def test_parts_and_streams(tmp_path: Path) -> None:
    rows = "".join(json.dumps({"input": f"a {i}", "target": "ab"[i % 2]}) + "\n" for i in range(8))
    (tmp_path / "a.jsonl").write_text(rows)
    np.savez(tmp_path / "b.npz", input=np.zeros((8, 2, 2), np.uint8), target=np.arange(8) % 2)
    with pytest.raises(DataError, match="a.jsonl: no split 'tets'; it is not divided: leave split out"):
        read("a.jsonl", root=tmp_path, split="tets")

    def stream(*tasks: tuple[str, str]) -> Callable[[], object]:
        listed = [{"name": name, "train": file} for name, file in tasks]
        return lambda: build_stream({"name": "x", "tasks": listed, "validation": 0}, 0, tmp_path)

    with pytest.raises(RankwiseError, match="tasks mix image and text; a stream holds one modality"):
        stream(("one", "a.jsonl"), ("two", "b.npz"))()
    with pytest.raises(RankwiseError, match="'one' is used 2 times; names must differ"):
        stream(("one", "a.jsonl"), ("one", "a.jsonl"))()


def test_a_saved_set_that_names_other_files(tmp_path: Path) -> None:
    import datasets

    datasets.Dataset.from_dict({"input": ["a"], "target": ["b"]}).save_to_disk(str(tmp_path / "it"))
    state = json.loads((tmp_path / "it" / "state.json").read_text())
    (tmp_path / "it" / "state.json").write_text(json.dumps({**state, "_data_files": [{"filename": "../x.arrow"}]}))
    with pytest.raises(
        DataError, match="_data_files names '../x.arrow', which is no file of its folder; save it again"
    ):
        read("it", root=tmp_path)


def test_tensors_of_a_peft_checkpoint_and_of_ours(tmp_path: Path) -> None:
    import torch

    import rankwise
    from rankwise.adapters import store
    from rankwise.storage import read_folder, write_folder
    from rankwise.tensors import load_tensors, save_tensors

    def base() -> torch.nn.Module:
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Linear(3, 2))

    model = rankwise.adapt(base(), "lora", rank=1)
    rankwise.export(model, tmp_path / "peft")
    (tmp_path / "peft" / "manifest.json").unlink()
    file = tmp_path / "peft" / "adapter_model.safetensors"
    file.write_bytes(save_tensors({name: t for name, t in load_tensors(file).items() if "lora_A" in name}))
    with pytest.raises(DataError, match="'0' has only its A; copy the file again"):
        rankwise.load(base(), tmp_path / "peft")
    rankwise.save(model, tmp_path / "ours")
    files = {name: path.read_bytes() for name, path in read_folder(tmp_path / "ours", kind=store.KIND).items()}
    tensors = load_tensors(tmp_path / "ours" / "adapter.safetensors")
    wide = {name: torch.cat([t, t], 1) if name.endswith(".A") else t for name, t in tensors.items()}
    write_folder(tmp_path / "ours", {**files, "adapter.safetensors": save_tensors(wide)}, kind=store.KIND)
    with pytest.raises(StorageError, match=r"0/live.A: shape \(1, 6\) does not fit the site's"):
        rankwise.load(base(), tmp_path / "ours")
