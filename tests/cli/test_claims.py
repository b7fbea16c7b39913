"""`rankwise claims`."""

from __future__ import annotations

import json

import pytest

from rankwise.cli import main


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_it_prints_values_thresholds_and_verdict(here, capsys):
    assert main(["claims", "mora", "--seeds", "3", "--jobs", "1", "--write"]) == 0
    out = capsys.readouterr().out
    assert "mora 1: forgets a third of what a growing sum does: " in out
    assert "inputs led by their own block" in out and ">= 0.6" in out
    rows = json.loads((here / "claims.json").read_text())
    assert [(row["slug"], row["number"], row["seeds"]) for row in rows][:2] == [("mora", "1", 3), ("mora", "2", 3)]
    assert (here / "CLAIMS.md").read_text().startswith("# Claims\n")
    assert main(["claims", "mora", "--seeds", "3", "--json"]) == 0  # taken over from runs/claims
    assert json.loads(capsys.readouterr().out) == rows


def test_nothing_is_written_unless_asked(here, capsys):
    assert main(["claims", "mora", "--seeds", "1", "--jobs", "1", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["verdict"] for row in rows} <= {
        "undecided",
        "does not hold",
        "not measured",
    }  # one seed decides nothing
    assert not (here / "CLAIMS.md").exists() and not (here / "claims.json").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["mroa"], "there are no claims of 'mroa'; did you mean 'mora'?"),
        (["mora", "--seeds", "0"], "--seeds"),
    ],
)
def test_misuse(here, capsys, words, says):
    assert main(["claims", *words]) == 2
    assert says in capsys.readouterr().err
