"""The page in a real browser: telephones, darkness, the keyboard, and nothing asked of the network."""

from __future__ import annotations

from pathlib import Path

import browser  # pyright: ignore[reportMissingImports]
import pytest
from runs import made  # pyright: ignore[reportMissingImports]

from rankwise.reporting.page import report

COMMAND = browser.found()
pytestmark = pytest.mark.skipif(COMMAND is None, reason="no Chromium is installed here")


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    with browser.browser(COMMAND, tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> list[Path]:
    at = tmp_path_factory.mktemp("runs")
    long = [f"a_task_with_a_very_long_name_indeed_{i}" for i in range(12)]
    one = report([made(at / "one")])[0]
    wide = report([made(at / "wide", long, [[0.5] * 12] * 12)])[0]
    made(at / "many" / "a", method="lora", blocks=False, toml="[train]\nlr = 0.125\n")
    made(at / "many" / "b", method="lora", blocks=False, toml="[train]\nlr = 0.25\n")
    return [one, wide, report([made(at / "many" / "c").parent])[0]]


@pytest.mark.parametrize("width", [320, 375, 1200])
def test_the_page_is_never_wider_than_the_window(tab, pages, width):
    for path in pages:
        tab.show(path, width)
        tab.ask("document.querySelectorAll('details').forEach(each => each.open = true)")
        assert tab.ask("document.documentElement.scrollWidth") <= width, path
        assert tab.ask("Math.min(...[...document.querySelectorAll('svg.chart')].map(e => e.clientWidth))") >= 100


def test_it_asks_for_nothing(tab, pages):
    for path in pages:
        tab.asked.clear()
        tab.show(path)
        assert [url for url in tab.asked if url != path.resolve().as_uri()] == []


def test_it_follows_the_reader_s_colours(tab, pages):
    grounds = []
    for dark in (False, True):
        tab.show(pages[0], dark=dark)
        grounds.append(tab.ask("getComputedStyle(document.body).backgroundColor"))
    assert grounds == ["rgb(255, 255, 255)", "rgb(18, 23, 29)"]
    cell = tab.ask("getComputedStyle(document.querySelector('.heat td[style]')).backgroundColor")
    assert cell.startswith("color(srgb"), "cells are shaded"


def test_it_works_by_keyboard(tab, pages):
    tab.show(pages[0])
    tab.press("Tab", 9)
    assert tab.ask("document.activeElement.className") == "skip"
    assert tab.ask("document.activeElement.getBoundingClientRect().left") >= 0, "it comes into view"
    assert tab.ask("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    order = []
    for _ in range(40):
        tab.press("Tab", 9)
        order.append(tab.ask("document.activeElement.tagName + '.' + document.activeElement.className"))
    assert {"A.", "DIV.scroll", "SUMMARY."} <= set(order)
