from __future__ import annotations

import io

import pytest
from rich.console import Console

from rankwise.reporting.tables import Table, matrix_table, methods_table, number, plain, show, summary_table

RESULTS = {
    "tasks": ["first", "second"],
    "metric": "accuracy",
    "matrix": [[1.0, None], [0.5, 0.75]],
    "zero_shot": [None, None],
    "final_average": 0.625,
    "forgetting_first_minus_last": 0.5,
    "learning_accuracy": 0.875,
    "validation_final_average": None,
}


def printed(table: Table, *, terminal: bool, width: int = 80) -> str:
    file = io.StringIO()
    show(table, Console(file=file, force_terminal=terminal, width=width, color_system=None))
    return file.getvalue()


@pytest.mark.parametrize(
    ("value", "text"), [(None, "-"), (1.0, "1.00"), (0.456, "0.46"), (-0.5, "-0.50"), (-0.001, "0.00"), (0, "0.00")]
)
def test_number(value, text: str) -> None:
    assert number(value) == text


def test_matrix_has_a_row_a_task_and_blanks_are_dashes() -> None:
    table = matrix_table(RESULTS)
    assert table.columns == ("after", "first", "second")
    assert table.rows == (("1 first", "1.00", "-"), ("2 second", "0.50", "0.75"))
    assert table.bold == {(0, 1), (1, 2)}


def test_scores_before_learning_come_first_where_there_are_any() -> None:
    table = matrix_table({**RESULTS, "zero_shot": [0.25, None]})
    assert table.rows[0] == ("nothing", "0.25", "-")
    assert table.bold == {(1, 1), (2, 2)}


def test_names_give_way_to_numbers_on_a_narrow_terminal() -> None:
    wide = {**RESULTS, "tasks": ["a rather long name of a task", "another rather long name"]}
    assert matrix_table(wide, width=200).columns[1:] == tuple(wide["tasks"])
    table = matrix_table(wide, width=60)
    assert table.columns[1:] == ("1", "2")
    assert table.rows[1][0] == "2 another rather long name"
    assert "0.75" in printed(table, terminal=True, width=60)


def test_plain_text_is_aligned() -> None:
    lines = plain(matrix_table(RESULTS, title="mora")).splitlines()
    assert lines == [
        "mora: R: accuracy on each task (columns) after learning each (rows)",
        "after     first  second",
        "1 first    1.00       -",
        "2 second   0.50    0.75",
    ]


def test_a_pipe_gets_plain_text_and_a_terminal_a_drawing() -> None:
    table = matrix_table(RESULTS)
    assert printed(table, terminal=False) == plain(table) + "\n"
    drawing = printed(table, terminal=True)
    assert "─" in drawing
    assert "0.75" in drawing


def test_text_in_brackets_is_not_markup() -> None:
    table = Table("t", ("[bold]a",), (("[red]b",),))
    assert "[red]b" in printed(table, terminal=True)
    assert "[bold]a" in printed(table, terminal=False)


def test_long_lines_of_plain_text_are_not_broken() -> None:
    table = Table("t", ("a",), (("x" * 300,),))
    assert "x" * 300 in printed(table, terminal=False)


def test_on_a_narrow_terminal_headers_wrap_and_cells_stay_whole() -> None:
    drawing = printed(summary_table({"a-run-with-a-name": RESULTS}), terminal=True, width=70)
    assert "…" not in drawing
    assert "a-run-with-a-name" in drawing
    assert max(map(len, drawing.splitlines())) <= 70


def test_summary_has_a_row_a_run() -> None:
    table = summary_table({"a": RESULTS, "b": {**RESULTS, "final_average": None}})
    assert table.rows == (("a", "0.62", "0.50", "0.88", "-"), ("b", "-", "0.50", "0.88", "-"))


def test_methods_say_yes_and_no() -> None:
    record = {"slug": "s", "title": "t", "paper": "p", "axis": "gate", "mergeable": False, "peft": None}
    assert methods_table([record]).rows == (("s", "t", "p", "gate", "no", "-"),)
