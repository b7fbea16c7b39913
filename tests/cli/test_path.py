"""The command `rankwise path`: a table, JSON, a plot, and what it refuses."""

from __future__ import annotations

import json

import pytest

from rankwise.cli import main


def test_it_prints_a_table_and_draws_a_plot(finished, capsys, tmp_path):
    plot = tmp_path / "line.svg"
    assert main(["path", str(finished.folder), "--alphas", "3", "--plot", str(plot)]) == 0
    out = capsys.readouterr().out
    assert "barrier" in out and "CKA" in out and f"plot: {plot}" in out
    assert [line.split()[0] for line in out.splitlines() if line[:1].isdigit()] == ["0.00", "0.50", "1.00"]
    assert "On the straight line between two tasks" in plot.read_text()
    assert "accuracy on " in plot.read_text() and "loss on " in plot.read_text()


def test_the_json_holds_what_the_table_says(finished, capsys):
    tasks = json.loads((finished.folder / "results.json").read_text())["tasks"]
    assert main(["path", str(finished.folder), "--tasks", f"{tasks[0]},{tasks[-1]}", "--alphas", "2", "--json"]) == 0
    measured = json.loads(capsys.readouterr().out)
    assert measured["tasks"] == [tasks[0], tasks[-1]] and measured["alphas"] == [0.0, 1.0]
    drawn = finished.folder / f"path-{tasks[0]}-{tasks[-1]}.svg"
    assert measured["plot"] == str(drawn) and drawn.is_file() and set(measured["losses"]) == {tasks[0], tasks[-1]}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tasks", "one"], "name two tasks, as in --tasks first,second"),
        (["--alphas", "1"], "--alphas 1: the line has two ends"),
        (["--tasks", "digits-1,digits-99"], "task 'digits-99' is not in this run"),
    ],
)
def test_what_it_refuses_it_names(finished, capsys, words, message):
    assert main(["path", str(finished.folder), *words]) == 2
    assert message in capsys.readouterr().err
