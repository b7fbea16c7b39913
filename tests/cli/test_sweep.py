from __future__ import annotations

import json

import pytest

from rankwise.cli import main


@pytest.fixture(scope="module")
def line(finished, tmp_path_factory) -> list[str]:
    """A command line that sweeps two rates of one method over two seeds, one task each."""
    folder = tmp_path_factory.mktemp("sweep") / "s"
    few = ["--set", "stream.first_tasks=1", "--set", "train.steps=1", "--tune-tasks", "1", "--seeds", "2"]
    return ["sweep", str(finished.config), "--grid", "train.lr=[1e-3, 0.01]", *few, "--out", str(folder)]


def test_sweep_prints_what_was_picked_and_how_it_compares(line, capsys) -> None:
    assert main(line) == 0
    first = capsys.readouterr()
    assert sum(" tune lora " in text for text in first.err.splitlines()) == 2
    assert first.out.startswith("picked on validation data\n")
    assert "digits (1 tasks) on embedded:vit" in first.out
    assert first.out.splitlines()[-1] == f"sweep directory: {line[-1]}"
    assert main([*line, "--json"]) == 0
    again = capsys.readouterr()
    record = json.loads(again.out)
    assert again.err == ""  # all of it was done
    assert record["chosen"]["lora"]["values"]["train.lr"] in (1e-3, 0.01)
    (table,) = record["comparison"]["tables"]
    assert [(row["label"], row["seeds"]) for row in table["rows"]] == [("lora", [0, 1])]
    assert main(["compare", line[-1], "--json"]) == 0
    compared = json.loads(capsys.readouterr().out)
    assert compared["tables"][0]["rows"][0]["values"] == table["rows"][0]["values"]


def test_a_sweep_in_which_all_fails_fails(finished, tmp_path, capsys) -> None:
    few = ["--set", "stream.first_tasks=1", "--set", "train.steps=3", "--seeds", "1"]
    assert main(["sweep", str(finished.config), "--grid", "train.lr=[1e30]", *few, "--out", str(tmp_path / "s")]) == 1
    told = capsys.readouterr()
    assert told.err.splitlines()[-1].startswith("error: lora-seed0: step ")
    assert "lower train.lr" in told.err
    assert f"delete {tmp_path / 's' / 'lora-seed0'} or choose another --out to start anew" in told.err


def test_stopped_it_says_how_to_go_on(line, tmp_path, monkeypatch, capsys) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("rankwise.api.run", stopped)
    assert main([*line[:-1], str(tmp_path / "a b")]) == 130
    assert capsys.readouterr().err.splitlines()[-1] == f"stopped; the same command goes on in '{tmp_path / 'a b'}'"


def test_a_sweep_is_learnt_on_this_machine(line, capsys) -> None:
    assert main([*line, "--on", "ray"]) == 2
    assert "--on ray: runs are learnt on this machine alone so far" in capsys.readouterr().err
    assert main([*line, "--on", "lcoal"]) == 2
    assert "did you mean 'local'?" in capsys.readouterr().err
