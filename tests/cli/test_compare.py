from __future__ import annotations

import json

from rankwise.cli import main


def test_compare_of_runs_that_differ_in_a_setting(finished, tmp_path, capsys) -> None:
    other = tmp_path / "other"
    line = ["run", str(finished.config), "--set", "seed=3", "--set", "train.lr=0.01", "--out", str(other), "--json"]
    assert main(line) == 0
    found = json.loads(capsys.readouterr().out)
    assert main(["compare", str(finished.folder), str(other), "--keys", "final_average", "--json"]) == 0
    (table,) = json.loads(capsys.readouterr().out)["tables"]
    assert [row["label"] for row in table["rows"]] == ["lora train.lr=0.001", "lora train.lr=0.01"]
    first = json.loads((finished.folder / "results.json").read_text())
    (difference,) = table["differences"]
    assert difference["mean"] == found["final_average"] - first["final_average"]
    assert (difference["low"], difference["seeds"]) == (None, [3])
    assert main(["compare", str(finished.folder), str(other)]) == 0
    out = capsys.readouterr().out
    assert "digits (5 tasks) on embedded:vit: mean of accuracy over seeds" in out
    assert "minus lora train.lr=0.001" in out


def test_what_is_left_out_goes_to_stderr(finished, tmp_path, capsys) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open" / "config.toml").write_text('method = "lora"\n')
    assert main(["compare", str(finished.folder), str(tmp_path / "open"), "--json"]) == 0
    told = capsys.readouterr()
    assert json.loads(told.out)["notes"] == [told.err.strip().removeprefix("note: ")]
    assert "is not finished" in told.err
    assert main(["compare", str(tmp_path / "open")]) == 1
    assert "nothing to compare" in capsys.readouterr().err


def test_a_key_that_is_not_there_is_misuse(finished, capsys) -> None:
    assert main(["compare", str(finished.folder), "--keys", "final_avrage"]) == 2
    assert "did you mean 'final_average'" in capsys.readouterr().err
