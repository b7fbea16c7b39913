from __future__ import annotations

import struct
import sys
from xml.etree import ElementTree

import pytest

from rankwise.errors import UsageError
from rankwise.reporting import plots

RESULTS = {
    "method": "mora",
    "model": "embedded:vit",
    "stream": "digits",
    "seed": 0,
    "metric": "accuracy",
    "tasks": ["first", "second", "third"],
    "matrix": [[1.0, None, None], [0.5, 0.75, None], [0.25, 0.31, 0.98]],
    "zero_shot": [None, None, None],
    "final_average": 0.51,
    "forgetting_first_minus_last": 0.6,
}


@pytest.fixture
def chart():
    pytest.importorskip("altair")
    pytest.importorskip("vl_convert")
    return plots.matrix_chart(RESULTS)


def test_svg_holds_every_known_score_and_no_other(chart, tmp_path) -> None:
    plots.write(chart, tmp_path / "new" / "r.svg")
    texts = [node.text for node in ElementTree.parse(tmp_path / "new" / "r.svg").iter() if node.tag.endswith("text")]
    scores = [text for text in texts if text and len(text) == 4 and text[1] == "."]
    assert sorted(scores) == sorted(["1.00", "0.50", "0.75", "0.25", "0.31", "0.98"])
    assert "-" not in texts, "cells that were not measured stay blank"
    assert {"first", "second", "third", "mora on digits", "after learning"} <= set(texts)


def test_png_is_written_at_twice_the_size(chart, tmp_path) -> None:
    plots.write(chart, tmp_path / "r.png")
    head = (tmp_path / "r.png").read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", head[16:24])
    assert width > 2 * 3 * plots.CELL
    assert height > 2 * 3 * plots.CELL * 2 // 3


def test_colours_mean_the_same_in_every_chart(chart) -> None:
    assert chart.to_dict()["layer"][0]["encoding"]["color"]["scale"]["domain"] == [0, 1]


def test_scores_before_learning_are_the_first_row() -> None:
    pytest.importorskip("altair")
    pytest.importorskip("vl_convert")
    spec = plots.matrix_chart({**RESULTS, "zero_shot": [0.1, 0.2, 0.3]}).to_dict()
    assert spec["layer"][0]["encoding"]["y"]["scale"]["domain"] == ["nothing", "first", "second", "third"]


def test_another_suffix_is_refused(chart, tmp_path) -> None:
    with pytest.raises(UsageError, match=r"'\.pgn'; did you mean '\.png'"):
        plots.write(chart, tmp_path / "r.pgn")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("missing", ["altair", "vl_convert"])
def test_a_missing_extra_says_what_to_install(monkeypatch, missing: str) -> None:
    if missing == "vl_convert":
        pytest.importorskip("altair")
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(UsageError, match=rf"plots need {missing}; pip install 'rankwise\[report\]'"):
        plots.matrix_chart(RESULTS)
