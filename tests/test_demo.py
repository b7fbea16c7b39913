from __future__ import annotations

import io
import json
from html import escape
from pathlib import Path

import pytest
from rich.console import Console

from rankwise import demo as demonstration
from rankwise.config import parse
from rankwise.config.schema import Config
from rankwise.demo import FAST, FULL, RUNS, Size, config_of, demo, reading, show_demo

TINY = Size(steps=1, lr=1e-3, validation=10, limit=10)


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    outcome = demo(folder, seed=1, size=TINY)
    assert {label: run["path"] for label, run in outcome["runs"].items()} == {
        label: str(folder / label) for label in RUNS
    }
    return outcome


def test_runs_come_in_order_and_are_what_their_folders_hold(outcome) -> None:
    assert list(outcome["runs"]) == ["frozen", "lora", "mora", "joint"]
    for run in outcome["runs"].values():
        assert run["results"] == json.loads((Path(run["path"]) / "results.json").read_text())
    assert [run["results"]["method"] for run in outcome["runs"].values()] == ["linear-probe", "lora", "mora", "joint"]
    assert all(len(run["results"]["tasks"]) == 5 for run in outcome["runs"].values())
    assert outcome["runs"]["frozen"]["results"]["steps"] == 0
    json.dumps(outcome, allow_nan=False)


def test_it_prints_both_matrices_all_summaries_and_every_folder(outcome) -> None:
    file = io.StringIO()
    show_demo(outcome, Console(file=file))
    lines = file.getvalue().splitlines()
    for label in ("lora", "mora"):
        at = lines.index(f"{label}: R: accuracy on each task (columns) after learning each (rows)")
        last = outcome["runs"][label]["results"]["matrix"][-1]
        assert lines[at + 6].split()[2:] == [f"{score:.2f}" for score in last]
    summary = lines[lines.index("summary") + 2 : lines.index("summary") + 6]
    assert [row.split()[0] for row in summary] == list(RUNS)
    assert all(f"{label}: {run['path']}" in lines for label, run in outcome["runs"].items())
    assert any(line.startswith("wall time: ") for line in lines)
    assert all(f"- {sentence}" in lines for sentence in outcome["reading"])


def test_it_leaves_a_page_of_each_run_and_one_of_all(outcome) -> None:
    whole = Path(outcome["report"]).read_text()
    assert Path(outcome["report"]).parent == Path(outcome["runs"]["mora"]["path"]).parent
    assert all(escape(sentence, quote=False) in whole for sentence in outcome["reading"])
    for run in outcome["runs"].values():
        score = run["results"]["final_average"]
        assert f"{score:.3f}" in whole and f"{score:.3f}" in (Path(run["path"]) / "report.html").read_text()
    file = io.StringIO()
    show_demo(outcome, Console(file=file))
    assert f"report: {outcome['report']}" in file.getvalue().splitlines()


@pytest.mark.parametrize("size", [FULL, FAST])
@pytest.mark.parametrize("label", RUNS)
def test_configs_are_valid_and_both_methods_learn_at_one_rate(label: str, size: Size) -> None:
    config = parse(Config, config_of(label, 5, size), "demo")
    assert config.seed == 5
    assert config.train.lr == size.lr
    assert config.train.steps == (0 if label == "frozen" else size.steps)


def scores(final: float, lost: float | None, learnt: float | None) -> dict:
    return {"final_average": final, "forgetting_first_minus_last": lost, "learning_accuracy": learnt}


@pytest.mark.parametrize(
    ("mora", "said"),
    [
        (0.8, "mora gained 0.10 on it."),
        (0.6, "not training at all beats mora by 0.10."),
        (0.7, "mora ends where it began."),
    ],
)
def test_the_reading_follows_from_the_figures(mora: float, said: str) -> None:
    results = {
        "frozen": scores(0.7, 0.1, 0.75),
        "lora": scores(0.55, 0.42, 0.94),
        "mora": scores(mora, 0.2, 0.83),
        "joint": scores(0.96, None, None),
    }
    text = " ".join(reading(results, 3, FULL))
    assert f"mora ends at {mora:.2f}, lora at 0.55" in text
    assert "0.20 with mora, 0.42 with lora" in text
    assert "the slower is mora." in text
    assert said in text
    assert "One seed (3)" in text
    assert "end at 0.96" in text
    slow = {**results, "lora": scores(0.55, 0.42, 0.5)}
    assert "the slower is lora." in " ".join(reading(slow, 3, FULL))


def test_free_folder(monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    assert demonstration.free_folder(4) == Path("runs/demo-seed4")
    (tmp_path / "runs" / "demo-seed4").mkdir(parents=True)
    assert demonstration.free_folder(4) == Path("runs/demo-seed4-2")
