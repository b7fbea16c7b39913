"""Model cards: every artefact carries one, it says what the artefact's files say, and its code runs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import asked  # pyright: ignore[reportMissingImports]
import pytest
import torch
from torch import nn

import rankwise
from rankwise.cards import Card, Learnt
from rankwise.cli import main
from rankwise.errors import StorageError
from rankwise.storage import read_folder


def card(folder: Path) -> str:
    return (folder / "README.md").read_text(encoding="utf-8")


def loaded(folder: Path, monkeypatch: pytest.MonkeyPatch, **names: Any) -> dict[str, Any]:
    """Run the card's code in the artefact's folder; `base = ...` is left to the one who has the base."""
    (code,) = re.findall(r"```python\n(.*?)```", card(folder), re.S)
    monkeypatch.chdir(folder)
    place = dict(names)
    exec(re.sub(r"^base = \.\.\..*$", "", code, flags=re.M), place)
    return place


def rows(text: str, heading: str) -> dict[str, list[str]]:
    """Return the tables below a heading, by their first cells."""
    part = text.split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    lines = [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in part.splitlines() if line[:1] == "|"]
    return {line[0]: line[1:] for line in lines}


@pytest.fixture(scope="module")
def folders(finished, tmp_path_factory) -> dict[str, Path]:
    at = tmp_path_factory.mktemp("artefacts")
    assert main(["export", str(finished.folder), "--out", str(at / "peft")]) == 0
    assert main(["merge", str(finished.folder), "--out", str(at / "merged")]) == 0
    return {"run": finished.folder / "adapter", "peft": at / "peft", "merged": at / "merged"}


@pytest.mark.parametrize("kind", ["run", "peft", "merged"])
def test_a_card_says_what_the_files_say(kind, folders, finished):
    text = card(folders[kind])
    results = json.loads((finished.folder / "results.json").read_text())
    environment = json.loads((finished.folder / "environment.json").read_text())
    assert re.match(r"---\nlibrary_name: (rankwise|peft|transformers)\nlicense: unknown  # to be filled in", text)
    assert rows(text, "Base")["fingerprint"] == [environment["base"]["fingerprint"]]
    assert rows(text, "Base")["name"] == [results["model"]]
    last = results["matrix"][-1]
    for j, task in enumerate(results["tasks"]):
        assert rows(text, "Scores")[task] == [f"{results['matrix'][j][j]:.4f}", f"{last[j]:.4f}"]
    assert rows(text, "Scores")["final average"] == [f"{results['final_average']:.4f}"]
    assert rows(text, "Method and settings")["train.steps"] == ["3"]
    data = rows(text, "Training data")
    for task in environment["stream"]["tasks"]:
        assert data[task["name"]] == [str(task["sizes"][part]) for part in ("train", "validation", "test")]
    for source in environment["stream"]["sources"]:
        assert source["sha256"] in text
    assert "## Limits" in text and "## Licence" in text and "## Provenance" in text


def test_the_code_of_every_card_runs(folders, monkeypatch):
    own, theirs, plain = (loaded(folders[kind], monkeypatch)["model"].eval() for kind in ("run", "peft", "merged"))
    images = torch.linspace(0, 1, 2 * 3 * 16 * 16).view(2, 3, 16, 16)
    size = own.config.image_size if hasattr(own, "config") else 16
    images = nn.functional.interpolate(images, size)[:, : own.config.num_channels]
    with torch.no_grad():
        wanted = own(images).last_hidden_state
        torch.testing.assert_close(theirs(images).last_hidden_state, wanted, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(plain(images).last_hidden_state, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("base", ["llama", "t5"])
def test_the_code_of_every_card_loads_a_language_head_too(base, writers, tmp_path, monkeypatch):
    run = asked.learnt(writers(base), tmp_path)
    for verb in ("export", "merge"):
        assert main([verb, str(run), "--out", str(tmp_path / verb)]) == 0
    places = (run / "adapter", tmp_path / "export", tmp_path / "merge")
    own, theirs, plain = (loaded(place, monkeypatch)["model"].eval() for place in places)
    ids = torch.tensor([[2, 3, 5, 1]])
    given = {"input_ids": ids, **({"decoder_input_ids": ids} if base == "t5" else {})}
    with torch.no_grad():
        wanted = own(**given).logits
        torch.testing.assert_close(theirs(**given).logits, wanted, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(plain(**given).logits, wanted, rtol=1e-4, atol=1e-4)
    whole = asked.learnt(writers(base), tmp_path, "finetune") / "adapter"
    assert type(loaded(whole, monkeypatch)["model"]) is type(plain)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("meta-llama/Llama-3.2-1B", "base_model: meta-llama/Llama-3.2-1B\n"),
        ("/data/llama", ""),
        ("../data", ""),
        ("embedded:vit", ""),
        ("", ""),
    ],
)
def test_a_card_names_a_base_of_the_hub_as_the_hub_reads_it(name, line):
    text = Card("adapter", "rankwise", "lora", {"name": name}, "pass", ()).text().decode()
    assert text.startswith(f"---\nlibrary_name: rankwise\n{line}license: ")


@pytest.mark.parametrize("method", ["finetune", "linear-probe"])
def test_what_is_no_adapter_has_a_card_too(method, finished, tmp_path, monkeypatch):
    steps = "0" if method == "linear-probe" else "1"
    line = ["run", str(finished.config), "--set", f"method={method}", "--set", f"train.steps={steps}"]
    out = tmp_path / "run"
    assert main([*line, "--set", 'objective.predict="means"', "--out", str(out), "--json"]) == 0
    found = loaded(out / "adapter", monkeypatch)
    assert isinstance(found["backbone"].module, nn.Module)


def test_an_adapter_saved_from_python_has_a_card(tmp_path, monkeypatch):
    def base() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 3))

    model = rankwise.adapt(base(), "lora", rank=2)
    rankwise.save(model, tmp_path / "saved")
    text = card(tmp_path / "saved")
    assert json.loads((tmp_path / "saved" / "adapter.json").read_text())["base"]["fingerprint"] in text
    assert "describe it here" in text and "Not recorded in this artefact." in text
    again = loaded(tmp_path / "saved", monkeypatch, base=base())["model"]
    x = torch.ones(2, 4)
    assert torch.equal(again(x), model(x))


def test_a_card_may_be_edited_and_nothing_else(folders, tmp_path):
    model = rankwise.adapt(nn.Sequential(nn.Linear(4, 3)), "lora", rank=2)
    rankwise.save(model, tmp_path / "saved")
    (tmp_path / "saved" / "README.md").write_text("license: mit")
    assert "README.md" not in read_folder(tmp_path / "saved", kind="adapter")
    (tmp_path / "saved" / "README.md").unlink()
    read_folder(tmp_path / "saved", kind="adapter")
    (tmp_path / "saved" / "README.txt").write_text("")
    with pytest.raises(StorageError, match=r"README\.txt: does not belong there"):
        read_folder(tmp_path / "saved", kind="adapter")


def test_a_name_cannot_break_out_of_a_card():
    evil = "a | b\n<script>alert(1)</script>"
    stream = {"tasks": [{"name": evil, "sizes": {"train": 1, "test": 1}}], "sources": [{"name": "/home/me/x.csv"}]}
    results = {"stream": "s", "seed": 0, "tasks": [evil], "metric": "accuracy", "matrix": [[0.5]]}
    means = {
        "final_average": 0.5,
        "learning_accuracy": 0.5,
        "forgetting_first_minus_last": None,
        "backward_transfer": None,
    }
    learnt = Learnt({"adapter": {"rank": 2}}, stream, {**results, **means})
    text = Card("adapter", "rankwise", "lora", {"fingerprint": "f"}, "pass", (), learnt=learnt).text().decode()
    assert "<script>" not in text and r"| a \| b &lt;script>alert(1)&lt;/script> | 1 | - | 1 |" in text
    assert "/home/me" not in text and "| x.csv |" in text
