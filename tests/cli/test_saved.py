"""What can be done with a run that was saved: log, evaluate, undo, merge, export, as a user types them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

import rankwise
from rankwise.cli import main
from rankwise.models import load_backbone


@pytest.fixture
def run(finished, tmp_path) -> Path:
    """A copy of the finished run, to be changed."""
    return Path(shutil.copytree(finished.folder, tmp_path / "run"))


def said(capsys, *words: object) -> str:
    assert main([str(word) for word in words]) == 0
    return capsys.readouterr().out


def results(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


def test_log(finished, capsys) -> None:
    records = json.loads(said(capsys, "log", finished.folder, "--json"))
    assert [record["task"] for record in records] == results(finished.folder)["tasks"]
    title, header, *rows = said(capsys, "log", finished.folder).splitlines()
    assert (title, header.split()[:2]) == ("what was learnt when", ["task", "steps"])
    diagonal = [row[i] for i, row in enumerate(results(finished.folder)["matrix"])]
    assert [row.split()[:4] for row in rows] == [
        [str(i + 1), f"digits-{i + 1}", "3", f"{score:.2f}"] for i, score in enumerate(diagonal)
    ]
    assert [row.split()[-1] for row in rows] == [f"step-{4 * i:08d}" for i in range(1, 6)]


def test_evaluate_gives_the_last_row(finished, capsys) -> None:
    row = results(finished.folder)["matrix"][-1]
    assert json.loads(said(capsys, "evaluate", finished.folder, "--json"))["scores"] == row
    out = said(capsys, "evaluate", finished.folder, "--task", "digits-2").splitlines()
    assert out[0] == "accuracy after digits-5"
    assert out[2].split()[:2] == ["digits-2", f"{row[1]:.2f}"]
    assert len(out) == 3


def test_a_task_that_is_not_there_is_misuse(finished, capsys) -> None:
    assert main(["evaluate", str(finished.folder), "--task", "digit-2"]) == 2
    assert "did you mean 'digits-2'" in capsys.readouterr().err


def test_undo_and_resume(finished, run, capsys) -> None:
    out = said(capsys, "undo", run)
    assert out.startswith(f"undone: digits-5; `rankwise resume {run}` learns it again\n")
    assert out.rstrip().endswith(f"run directory: {run}")
    assert json.loads(said(capsys, "undo", run, "--json"))["undone"] == "digits-4"
    assert [record["task"] for record in json.loads(said(capsys, "log", run, "--json"))] == [
        "digits-1",
        "digits-2",
        "digits-3",
    ]
    assert results(run)["matrix"] == results(finished.folder)["matrix"][:3]
    assert json.loads(said(capsys, "evaluate", run, "--json"))["scores"] == results(run)["matrix"][-1]
    again = json.loads(said(capsys, "resume", run, "--json"))
    assert again["matrix"] == results(finished.folder)["matrix"]
    name = "adapter/adapter.safetensors"
    assert (run / name).read_bytes() == (finished.folder / name).read_bytes()


def test_log_of_nothing(run, capsys) -> None:
    for _ in range(5):
        said(capsys, "undo", run)
    assert said(capsys, "log", run) == "nothing has been learnt yet\n"
    assert main(["undo", str(run)]) == 2
    assert "no task has been learnt yet" in capsys.readouterr().err


def features(name: str | Path, adapter: Path | None = None) -> torch.Tensor:
    """What a base, with an adapter on it or without, makes of two images."""
    base = load_backbone(str(name))
    if adapter is not None:
        rankwise.load(base.module, adapter)
    images = torch.arange(2 * 64, dtype=torch.uint8).reshape(2, 8, 8)
    with torch.no_grad():
        return base.features(base.encode(images))


def test_merge_writes_a_base_that_computes_the_same(finished, tmp_path, capsys) -> None:
    written = json.loads(said(capsys, "merge", finished.folder, "--out", tmp_path / "m", "--json"))
    assert (written["model"], written["out"]) == ("embedded:vit", str(tmp_path / "m"))
    expected = features("embedded:vit", finished.folder / "adapter")
    torch.testing.assert_close(features(tmp_path / "m"), expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(expected, features("embedded:vit"), atol=1e-4)
    assert load_backbone(str(tmp_path / "m")).fingerprint == written["fingerprint"]
    head = "head.safetensors"
    assert (tmp_path / "m" / head).read_bytes() == (finished.folder / "adapter" / head).read_bytes()


def test_a_merged_model_can_be_the_base_of_a_run(finished, tmp_path, capsys) -> None:
    said(capsys, "merge", finished.folder, "--out", tmp_path / "m")
    line = ["run", finished.config, "--set", f"model.name={tmp_path / 'm'}", "--set", "stream.first_tasks=1"]
    found = json.loads(said(capsys, *line, "--out", tmp_path / "r", "--json"))
    assert found["model"] == str(tmp_path / "m")


def test_merge_of_a_saved_adapter(finished, tmp_path, capsys) -> None:
    """Its base is the one it names; another name can be given where it names none."""
    adapter = shutil.copytree(finished.folder / "adapter", tmp_path / "adapter")
    said(capsys, "merge", adapter, "--out", tmp_path / "one")
    said(capsys, "merge", finished.folder, "--out", tmp_path / "two")
    assert torch.equal(features(tmp_path / "one"), features(tmp_path / "two"))
    base = load_backbone("embedded:vit").module
    rankwise.save(rankwise.load(base, adapter), tmp_path / "nameless")
    assert main(["merge", str(tmp_path / "nameless"), "--out", str(tmp_path / "x")]) == 2
    assert "give --base" in capsys.readouterr().err
    said(capsys, "merge", tmp_path / "nameless", "--base", "embedded:vit", "--out", tmp_path / "three")
    assert torch.equal(features(tmp_path / "three"), features(tmp_path / "two"))


def test_export_is_a_checkpoint_that_peft_loads(finished, tmp_path, capsys) -> None:
    from peft import PeftModel

    out = said(capsys, "export", finished.folder, "--to", "peft", "--out", tmp_path / "p")
    assert out == f"lora of {finished.folder} as a peft checkpoint: {tmp_path / 'p'}\n"
    base = load_backbone("embedded:vit")
    base.module = PeftModel.from_pretrained(base.module, str(tmp_path / "p")).eval()
    images = torch.arange(2 * 64, dtype=torch.uint8).reshape(2, 8, 8)
    with torch.no_grad():
        found = base.features(base.encode(images))
    torch.testing.assert_close(found, features("embedded:vit", finished.folder / "adapter"), rtol=1e-5, atol=1e-5)
    said(capsys, "merge", tmp_path / "p", "--out", tmp_path / "m")  # and back: a checkpoint of PEFT can be merged
    torch.testing.assert_close(features(tmp_path / "m"), found, rtol=1e-5, atol=1e-5)


def test_what_cannot_be_merged_or_exported_says_why_and_writes_nothing(finished, tmp_path, capsys) -> None:
    said(
        capsys, "run", finished.config, "--set", "method=mora", "--set", "stream.first_tasks=1", "--out", tmp_path / "r"
    )
    for verb in ("merge", "export"):
        assert main([verb, str(tmp_path / "r"), "--out", str(tmp_path / "x")]) == 2
        err = capsys.readouterr().err
        assert err.startswith(f"error: {tmp_path / 'r'}: method 'mora': ") and "depends on the input" in err
        assert not (tmp_path / "x").exists()


def test_a_folder_of_several_adapters_is_misuse(finished, tmp_path, capsys) -> None:
    said(capsys, "export", finished.folder, "--out", tmp_path / "both" / "law")
    assert main(["merge", str(tmp_path / "both"), "--out", str(tmp_path / "x")]) == 2
    assert f"holds PEFT adapters in folders (law); name one, as {tmp_path}/both/law" in capsys.readouterr().err


def test_a_base_that_was_trained_is_merged_as_it_is(finished, tmp_path, capsys) -> None:
    line = ["run", finished.config, "--set", "method=finetune", "--set", "stream.first_tasks=1"]
    said(capsys, *line, "--out", tmp_path / "r")
    said(capsys, "merge", tmp_path / "r", "--out", tmp_path / "m")
    assert not torch.equal(features(tmp_path / "m"), features("embedded:vit"))
    assert main(["export", str(tmp_path / "r"), "--out", str(tmp_path / "x")]) == 2
    assert "`rankwise merge` it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        (["merge", "RUN", "--out", "RUN"], "name a new folder"),
        (["merge", "RUN", "--out", "x", "--base", "minilm"], "leave it out"),
        (["merge", "RUN", "--out", "x", "--blocks", "adaptre"], "did you mean 'adapter'"),
        (["export", "RUN", "--out", "x", "--to", "pfet"], "did you mean 'peft'"),
    ],
)
def test_slips_are_misuse(finished, tmp_path, monkeypatch, capsys, words, remedy) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([str(finished.folder) if word == "RUN" else word for word in words]) == 2
    assert remedy in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
