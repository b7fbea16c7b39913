"""Runs side by side, on results made by hand: what is pooled, what is paired, what is left out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rankwise.errors import DataError, UsageError
from rankwise.learning.metrics import mean_interval, summary
from rankwise.reporting.compare import compare, compare_tables, run_folders
from rankwise.reporting.tables import plain


def saved(folder: Path, method: str, seed: int, final: float, toml: str = "", **results: Any) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text(f'seed = {seed}\nmethod = "{method}"\n{toml}')
    matrix = [[0.9, None], [2 * final - 0.8, 0.8]]
    found = {
        **{"method": method, "seed": seed, "stream": "digits", "model": "vit", "metric": "accuracy"},
        **{"tasks": ["a", "b"], "matrix": matrix, "zero_shot": [None, None], "wall_seconds": 1200.0},
        **{**summary(matrix, [None, None], [1, 1]), **results},
    }
    (folder / "results.json").write_text(json.dumps(found))
    return folder


@pytest.fixture
def runs(tmp_path) -> Path:
    for seed, (lora, mora) in enumerate([(0.5, 0.6), (0.7, 0.75), (0.6, 0.6)]):
        saved(tmp_path / f"lora-{seed}", "lora", seed, lora)
        saved(tmp_path / f"mora-{seed}", "mora", seed, mora)
    return tmp_path


def test_rows_are_methods_over_seeds(runs):
    (table,) = compare([runs])["tables"]
    assert (table["stream"], table["model"], table["metric"], table["tasks"]) == ("digits", "vit", "accuracy", 2)
    assert [(row["label"], row["seeds"]) for row in table["rows"]] == [("lora", [0, 1, 2]), ("mora", [0, 1, 2])]
    lora = table["rows"][0]
    assert lora["values"]["final_average"] == pytest.approx([0.5, 0.7, 0.6])
    assert lora["folders"] == [str(runs / f"lora-{seed}") for seed in range(3)]
    found, student = lora["intervals"]["final_average"], mean_interval([0.5, 0.7, 0.6])
    assert student is not None
    assert (found["mean"], found["n"]) == (pytest.approx(0.6), 3)
    assert (found["low"], found["high"]) == (pytest.approx(0.5), pytest.approx(0.7))
    assert (found["t_low"], found["t_high"]) == (pytest.approx(student.low), pytest.approx(student.high))


def test_differences_are_paired_by_seed(runs):
    (table,) = compare([runs], ["final_average"], "lora")["tables"]
    (found,) = table["differences"]
    assert (found["label"], found["seeds"], found["higher"]) == ("mora", [0, 1, 2], 2)
    assert (found["mean"], found["low"], found["high"]) == (
        pytest.approx(0.05),
        pytest.approx(0.0, abs=1e-9),
        pytest.approx(0.1),
    )
    (table,) = compare([runs], ["final_average"], "mora")["tables"]
    assert (table["differences"][0]["label"], table["differences"][0]["mean"]) == ("lora", pytest.approx(-0.05))


def test_the_baseline_is_the_first_folder_unless_named(runs):
    (table,) = compare([runs / "mora-0", runs / "lora-0"])["tables"]
    assert table["baseline"] == "mora"
    with pytest.raises(UsageError, match="did you mean 'mora'"):
        compare([runs], baseline="mroa")


def test_settings_that_differ_make_rows_of_their_own(runs):
    saved(runs / "fast-0", "lora", 0, 0.4, "[train]\nlr = 0.01\nthreads = 2\n")
    saved(runs / "fast-1", "lora", 1, 0.3, "[train]\nlr = 0.01\nthreads = 1\n")
    (table,) = compare([runs])["tables"]
    assert [(row["label"], row["seeds"]) for row in table["rows"]] == [
        ("lora train.lr=0.01", [0, 1]),
        ("lora train.lr=0.001", [0, 1, 2]),
        ("mora", [0, 1, 2]),
    ]


def test_other_streams_and_bases_have_tables_of_their_own(runs):
    saved(runs / "text", "lora", 0, 0.4, stream="mail")
    saved(runs / "large", "lora", 0, 0.4, model="vit-large")
    found = compare([runs])["tables"]
    assert sorted((table["stream"], table["model"], len(table["rows"])) for table in found) == [
        ("digits", "vit", 2),
        ("digits", "vit-large", 1),
        ("mail", "vit", 1),
    ]


def test_what_is_left_out_is_said(runs):
    (saved(runs / "open", "lora", 7, 0.4) / "results.json").unlink()
    saved(runs / "undone", "lora", 8, 0.4, matrix=[[0.9, None]])
    saved(runs / "z-again", "lora", 0, 0.9)
    found = compare([runs, runs / "lora-0"])
    assert [row["seeds"] for row in found["tables"][0]["rows"]] == [[0, 1, 2], [0, 1, 2]]
    assert [note.split(" is left out: ")[1].split(";")[0] for note in found["notes"]] == [
        "it is not finished",
        "it has learnt 1 of 2 tasks",
        f"it repeats {runs / 'lora-0'}, config and seed",
    ]


def test_seeds_that_do_not_match_are_compared_unpaired(tmp_path):
    for seed, final in ((0, 0.5), (1, 0.7)):
        saved(tmp_path / f"lora-{seed}", "lora", seed, final)
        saved(tmp_path / f"mora-{seed}", "mora", seed + 5, final)
    comparison = compare([tmp_path], ["final_average"])
    (found,) = comparison["tables"][0]["differences"]
    assert (found["seeds"], found["mean"], found["n"]) == ([], pytest.approx(0), 2)
    assert "unpaired" in plain(compare_tables(comparison)[1])


def test_a_figure_that_is_not_known_has_no_interval(tmp_path):
    saved(tmp_path / "joint", "joint", 0, 0.9, forgetting_first_minus_last=None)
    saved(tmp_path / "lora", "lora", 0, 0.5)
    comparison = compare([tmp_path])
    assert comparison["tables"][0]["rows"][0]["intervals"]["forgetting_first_minus_last"] is None
    rows, differences = compare_tables(comparison)
    assert rows.rows[0] == ("joint", "1", "0.900", "-", "0.850")
    assert "forgetting" not in plain(differences)


def test_tables_of_text(runs):
    rows, differences = compare_tables(compare([runs], ["final_average", "wall_seconds"]))
    assert rows.columns == ("method", "seeds", "final average", "wall seconds")
    assert rows.rows[1] == ("mora", "3", "0.650 [0.600, 0.750]", "1,200 [1,200, 1,200]")
    assert differences.title == "minus lora"
    assert differences.rows[0] == ("mora", "final average", "+0.050 [+0.000, +0.100]", "3 pairs", "2/3")


def test_slips_are_refused_with_the_nearest_name(runs):
    with pytest.raises(UsageError, match="did you mean 'final_average'"):
        compare([runs], ["final_avrage"])
    with pytest.raises(UsageError, match="did you mean 'lora-0'"):
        run_folders([runs / "lora0"])
    (runs / "empty").mkdir()
    with pytest.raises(UsageError, match="holds no run"):
        run_folders([runs / "empty"])
    (runs / "lora-0" / "results.json").unlink()
    with pytest.raises(DataError, match="none of these runs is finished"):
        compare([runs / "lora-0"])
