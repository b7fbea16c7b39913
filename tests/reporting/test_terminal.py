from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from rankwise.learning.run import Watch
from rankwise.reporting.tables import Table, matrix_table, show, verdict
from rankwise.reporting.terminal import Bar, Lines, duration, progress, show_results


class Clock:
    """Seconds that pass when told to."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def spoken(steps: int, seconds_a_step: float, first: int = 0) -> list[str]:
    """The lines between a task's start and its end."""
    clock, file = Clock(), io.StringIO()
    lines = Lines(file, clock)
    lines.task(1, 5, "birds", steps, first)
    for done in range(first + 1, steps + 1):
        clock.now += seconds_a_step
        lines.stepped(done, 0.5)
    return file.getvalue().splitlines()


def test_a_line_each_tenth() -> None:
    start, *steps = spoken(100, 0.3)
    assert start == "task 2/5  birds: 100 steps"
    assert [line.split()[1] for line in steps] == [f"{10 * i}/100" for i in range(1, 11)]
    assert steps[0] == "  step 10/100  loss 0.500  27 s left"


def test_a_line_each_ten_seconds_where_steps_are_slow() -> None:
    _, *steps = spoken(1000, 5.0)
    assert steps[:2] == ["  step 2/1000  loss 0.500  1 h 23 min left", "  step 4/1000  loss 0.500  1 h 23 min left"]


def test_fast_steps_do_not_flood() -> None:
    assert spoken(1000, 0.0001) == ["task 2/5  birds: 1000 steps"]


def test_a_resumed_task_says_where_it_goes_on_and_counts_its_own_time() -> None:
    start, *steps = spoken(20, 1.0, first=10)
    assert start == "task 2/5  birds: 20 steps, from step 10"
    assert steps[0] == "  step 12/20  loss 0.500  8 s left"


def test_scores_and_notes_are_lines() -> None:
    file = io.StringIO()
    lines = Lines(file)
    lines.note("snapshot [x] is damaged")
    lines.scored("birds", [0.987, None])
    assert file.getvalue() == "snapshot [x] is damaged\n  after birds: 0.99 -\n"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (59.6, "1 min 0 s"), (125, "2 min 5 s"), (3600, "1 h 0 min"), (7320, "2 h 2 min")],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def terminal(file: io.StringIO) -> Console:
    return Console(file=file, force_terminal=True, width=100, color_system=None, _environ={"TERM": "xterm"})


def test_a_terminal_gets_a_bar_a_pipe_lines_and_ci_lines(monkeypatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.delenv("RANK", raising=False)
    with progress(terminal(io.StringIO())) as watch:
        assert type(watch) is Bar
    with progress(Console(file=io.StringIO())) as watch:
        assert type(watch) is Lines
    monkeypatch.setenv("CI", "true")
    with progress(terminal(io.StringIO())) as watch:
        assert type(watch) is Lines


def test_only_the_first_process_reports(monkeypatch) -> None:
    monkeypatch.setenv("RANK", "1")
    with progress(terminal(io.StringIO())) as watch:
        assert type(watch) is Watch


def test_the_bar_shows_place_steps_and_loss_and_keeps_the_scores(monkeypatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    file = io.StringIO()
    with progress(terminal(file)) as watch:
        watch.task(0, 2, "birds", 4, 0)
        for done in range(1, 5):
            watch.stepped(done, 0.25)
        assert isinstance(watch, Bar)
        watch.display.refresh()
        watch.scored("birds", [1.0, None])
        watch.task(1, 2, "fish", 0, 0)
        watch.display.refresh()
    shown = file.getvalue()
    assert "task 1/2  birds" in shown
    assert "4/4 loss 0.250" in shown
    assert "  after birds: 1.00 -\n" in shown
    assert "task 2/2  fish" in shown


def test_results_end_with_the_folder() -> None:
    results = {
        "method": "lora",
        "stream": "birds",
        "tasks": ["a"],
        "metric": "accuracy",
        "matrix": [[0.5]],
        "zero_shot": [None],
        "final_average": 0.5,
        "forgetting_first_minus_last": None,
        "learning_accuracy": 0.5,
        "validation_final_average": 0.25,
        "trainable_parameters": 12345,
        "wall_seconds": 61.2,
        "peak_memory_bytes": 512 * 2**20,
    }
    file = io.StringIO()
    show_results(results, Path("runs") / ("x" * 200), Console(file=file))
    lines = file.getvalue().splitlines()
    assert lines[-1] == f"run directory: runs/{'x' * 200}"
    assert lines[-2] == "12,345 trainable parameters, 1 min 1 s, at most 512 MiB of memory"
    assert "lora           0.50                          -               0.50              0.25" in lines


MATRIX = {
    "method": "lora",
    "stream": "birds",
    "metric": "accuracy",
    "tasks": ["first-task", "second-task", "third-task"],
    "matrix": [[1.0, None, None], [0.95, 0.9, None], [0.5, 0.9, 0.8]],
    "zero_shot": [None] * 3,
    "final_average": 0.7333,
    "forgetting_first_minus_last": 0.25,
}


def shown(table: Table, width: int, **settings: Any) -> list[str]:
    file = io.StringIO()
    show(table, Console(file=file, force_terminal=True, width=width, **settings))
    return file.getvalue().splitlines()


@pytest.mark.parametrize("width", [24, 32, 40, 60, 100, 200])
def test_no_number_is_lost_on_a_narrow_terminal(width) -> None:
    lines = shown(matrix_table(MATRIX, width=width), width, color_system=None)
    text = " ".join(lines)
    assert all(f"{score:.2f}" in text for score in (1.0, 0.5, 0.9, 0.8))
    assert "…" not in text
    rows = Table("means", ("run", "final average", "seeds"), (("lora train.lr=0.001", "0.50 [0.40, 0.60]", "3"),))
    text = " ".join(shown(rows, width, color_system=None))
    assert "0.50 [0.40, 0.60]" in text and "train.lr=0.001" in text and "…" not in text


def test_what_was_lost_is_red_where_there_are_colours(monkeypatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    red = "\x1b[31m"
    lines = shown(matrix_table(MATRIX, width=100), 100, color_system="standard")
    assert [line.count(red) for line in lines if line.strip()[:1].isdigit()] == [0, 0, 1]
    monkeypatch.setenv("NO_COLOR", "1")
    assert not any(red in line for line in shown(matrix_table(MATRIX, width=100), 100, color_system="standard"))


def test_one_line_says_how_it_went() -> None:
    assert verdict(MATRIX) == (
        "lora on birds: 3 of 3 tasks learnt, 0.73 on average at the end; lost since learnt: 0.25, "
        "most on first-task (1.00 to 0.50)"
    )
    begun = {**MATRIX, "matrix": MATRIX["matrix"][:1], "final_average": None, "forgetting_first_minus_last": None}
    assert verdict(begun) == "lora on birds: 1 of 3 tasks learnt, - on average at the end"
