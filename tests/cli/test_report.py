"""The command `rankwise report`, and the page that a run leaves by itself."""

from __future__ import annotations

import json

from rankwise.cli import main


def test_a_run_leaves_its_page(finished):
    text = (finished.folder / "report.html").read_text()
    assert "<h1>lora on digits</h1>" in text
    assert f"report: {finished.folder / 'report.html'}" in finished.done.stdout
    score = json.loads((finished.folder / "results.json").read_text())["final_average"]
    assert f"{score:.3f}" in text


def test_it_can_be_written_again_elsewhere(finished, tmp_path, capsys):
    out = tmp_path / "new" / "page.html"
    assert main(["report", str(finished.folder), "--out", str(out), "--plots", str(tmp_path / "plots")]) == 0
    told = capsys.readouterr().out
    assert f"report: {out}" in told and "plots: " in told
    assert out.read_bytes() == (finished.folder / "report.html").read_bytes()
    assert (tmp_path / "plots" / "matrix.svg").read_text().startswith("<svg ")


def test_the_json_names_what_was_written(finished, tmp_path, capsys):
    out = tmp_path / "page.html"
    line = ["report", str(finished.folder), "--out", str(out), "--plots", str(tmp_path), "--json"]
    assert main(line) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["page"] == str(out) and str(tmp_path / "loss.svg") in told["plots"] and told["notes"] == []


def test_what_it_cannot_do_it_names(finished, tmp_path, capsys):
    assert main(["report", str(finished.folder), "--out", str(tmp_path)]) == 2
    assert "is a folder; name a file in it" in capsys.readouterr().err
    assert main(["report", str(tmp_path / "smal")]) == 2
    assert "no such folder" in capsys.readouterr().err
    assert main(["report", str(finished.folder), "--plots", str(tmp_path), "--format", "gif"]) == 2
    assert "svg" in capsys.readouterr().err
    (tmp_path / "open").mkdir()
    (tmp_path / "open" / "config.toml").write_text('method = "lora"\n')
    assert main(["report", str(tmp_path / "open")]) == 1
    assert "is not finished" in capsys.readouterr().err
