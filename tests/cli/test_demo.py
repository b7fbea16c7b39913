from __future__ import annotations

import json

import pytest

from rankwise import demo as demonstration
from rankwise.cli import main


def outcome(folder, seed, size, watch) -> dict:
    return {"folder": str(folder), "seed": seed, "size": size.steps}


@pytest.mark.parametrize(("flags", "size"), [([], demonstration.FULL), (["--fast"], demonstration.FAST)])
def test_flags_choose_the_size(monkeypatch, tmp_path, capsys, flags: list[str], size) -> None:
    monkeypatch.setattr(demonstration, "demo", outcome)
    assert main(["demo", "--out", str(tmp_path / "d"), "--seed", "7", "--json", *flags]) == 0
    assert json.loads(capsys.readouterr().out) == {"folder": str(tmp_path / "d"), "seed": 7, "size": size.steps}


def test_the_default_folder_is_free(monkeypatch, tmp_path, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "demo-seed2").mkdir(parents=True)
    monkeypatch.setattr(demonstration, "demo", outcome)
    assert main(["demo", "--seed", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["folder"] == "runs/demo-seed2-2"


def test_ctrl_c_says_how_to_go_on(monkeypatch, tmp_path, capsys) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(demonstration, "demo", interrupted)
    assert main(["demo", "--out", str(tmp_path)]) == 130
    assert capsys.readouterr().err == f"stopped; the same command with --out {tmp_path} goes on\n"
