"""Drawings as files: what is in them, what they are refused as, and that a PNG needs no browser."""

from __future__ import annotations

import struct
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from runs import made  # pyright: ignore[reportMissingImports]

from rankwise.errors import UsageError
from rankwise.reporting import drawing, plots
from rankwise.reporting.drawing import Line, axis, heat_map, line_chart, shade

MATRIX = [[1.0, None, None], [0.5, 0.75, None], [0.25, 0.31, 0.98]]
TASKS = ["first", "second", "third"]
CHART = heat_map(TASKS, TASKS, MATRIX, "accuracy on each task")


def texts(path: Path) -> list[str]:
    return [node.text or "" for node in ElementTree.parse(path).iter() if node.tag.endswith("text")]


def test_svg_holds_every_known_score_and_no_other(tmp_path) -> None:
    plots.write(CHART, tmp_path / "new" / "r.svg")
    found = texts(tmp_path / "new" / "r.svg")
    assert sorted(text for text in found if text[1:2] == ".") == sorted(
        ["1.00", "0.50", "0.75", "0.25", "0.31", "0.98"]
    )
    assert set(TASKS) <= set(found) and "-" not in found, "cells that were not measured stay blank"


def test_a_file_stands_alone(tmp_path) -> None:
    """Colours are fixed, nothing is named that lies elsewhere, and the picture says what it is."""
    plots.write(CHART, tmp_path / "r.svg")
    text = (tmp_path / "r.svg").read_text()
    assert "var(" not in text and "url(" not in text
    assert text.count("http") == 1 and 'xmlns="http://www.w3.org/2000/svg"' in text
    assert 'role="img"' in text and 'aria-label="accuracy on each task"' in text


def test_png_is_written_at_its_scale(tmp_path) -> None:
    pytest.importorskip("vl_convert")
    plots.write(CHART, tmp_path / "r.png")
    head = (tmp_path / "r.png").read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", head[16:24])
    for found, size in ((width, CHART.width), (height, CHART.height)):
        assert found == pytest.approx(plots.PNG_SCALE * (size + 2 * drawing.MARGIN), abs=4)


def test_another_suffix_is_refused(tmp_path) -> None:
    with pytest.raises(UsageError, match=r"'\.pgn'; did you mean '\.png'"):
        plots.write(CHART, tmp_path / "r.pgn")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_extra_says_what_to_install(monkeypatch, tmp_path) -> None:
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    with pytest.raises(UsageError, match=r"a PNG needs vl_convert; pip install 'rankwise\[report\]', or write an SVG"):
        plots.write(CHART, tmp_path / "r.png")


def test_every_figure_of_a_run_is_a_file(tmp_path) -> None:
    files = plots.write_all([made(tmp_path / "run")], tmp_path / "plots", "svg")
    names = {path.stem for path in files}
    shares = {"block-share-tasks", "block-share-sites", "activity-tasks", "activity-sites"}
    assert names == {"matrix", "averages", "tasks", "loss", "ranks", *shares}
    assert "0.40" in texts(tmp_path / "plots" / "matrix.svg")
    assert all(ElementTree.parse(path).getroot().tag.endswith("svg") for path in files)


def test_several_runs_share_their_figures(tmp_path) -> None:
    for method in ("lora", "mora"):
        made(tmp_path / "runs" / method, method=method)
    files = plots.write_all([tmp_path / "runs"], tmp_path / "plots", "svg")
    assert {path.stem for path in files} == {"tradeoff", "averages", "tasks", "loss"}
    assert {"lora", "mora"} <= set(texts(tmp_path / "plots" / "averages.svg"))


def test_gaps_stay_gaps_and_lone_points_are_seen() -> None:
    line = Line("a", [(1.0, 0.5), (2.0, None), (3.0, 0.25), (4.0, 0.75)], 2)
    assert line.ends == [(1.0, 0.5)]
    body = line_chart([line], axis("x", [1.0, 4.0]), axis("y", [0.0, 1.0]), "a line").body
    (path,) = [part.split('"')[0] for part in body.split('class="line s2" d="')[1:]]
    assert path.count("M") == 2 and path.count("L") == 1
    assert body.count('class="point s2"') == 1


@pytest.mark.parametrize(
    ("values", "ends", "marks"),
    [
        ([0.0, 1.0], (0.0, 1.0), ["0.00", "0.25", "0.50", "0.75", "1.00"]),
        ([0.3, 0.31], (0.3, 0.31), ["0.3000", "0.3025", "0.3050", "0.3075", "0.3100"]),
        ([5.0, 5.0], (5.0, 5.25), ["5.00", "5.25"]),
        ([-3.0, 1200.0], (-500.0, 1500.0), ["-500", "0", "500", "1,000", "1,500"]),
        ([], (0.0, 1.0), ["0.00", "0.25", "0.50", "0.75", "1.00"]),
    ],
)
def test_axes_end_at_round_numbers(values, ends, marks) -> None:
    found = axis("", values)
    assert (found.low, found.high) == pytest.approx(ends)
    assert [name for _, name in found.ticks] == marks


def test_shades_grow_with_scores_and_mean_the_same_in_every_chart() -> None:
    assert [shade(v, 1.0) for v in (-1.0, 0.0, 0.5, 1.0, 2.0)] == [0.0, 0.0, 0.25, 1.0, 1.0]
    assert shade(0.5, 0.0) == 0.0
