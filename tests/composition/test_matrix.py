"""Every method with every strategy, and with the dynamics of every other, trains, saves and resumes, or is refused by
name; two strategies go both ways round.

The whole tables are slow; a part of them that a seed draws, another one in each version, is always tested.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from loading import benchmark

from rankwise import papers
from rankwise.strategies import STRATEGIES

ROOT = Path(__file__).parents[2]
composition = benchmark("composition")
"""Makes the table."""
Cell = composition.Cell
TABLE = composition.cells()
DRAWN = random.Random(f"{len(TABLE)} cells").sample(TABLE, 24)
ALWAYS = [Cell(method, (name,)) for method in ("lora", "mora", "finetune") for name in STRATEGIES]
PAIRS = [(a, b) for i, a in enumerate(STRATEGIES) for b in list(STRATEGIES)[i + 1 :]]


def holds(cell: Any) -> str | None:
    if "quantize" in papers.method(cell.method).defaults.get("model", {}):
        pytest.importorskip("bitsandbytes")
    return composition.refusal(cell)


def page() -> dict[Any, str]:
    """Return the cells of the published tables, the text of the reason in the place of its number."""
    text = (ROOT / "docs" / "composition.md").read_text(encoding="utf-8")
    reasons = dict(line.split(". ", 1) for line in text.splitlines() if line.split(".")[0].isdigit())
    found: dict[Any, str] = {}
    for part in text.split("\n## "):
        rows = [[cell.strip(" `") for cell in line.split("|")[1:-1]] for line in part.splitlines() if line[:1] == "|"]
        for method, *marks in rows[2:]:
            for name, mark in zip(rows[0][1:], marks, strict=True):
                strategies = () if name == composition.ALONE else (name,)
                cell = Cell(method, strategies) if name in composition.COLUMNS else Cell(method, dynamics=name)
                found |= {} if mark == "own" else {cell: reasons.get(mark.strip("[]"), mark)}
    return found


def label(cell: Any) -> str:
    return " with ".join((cell.method, *cell.parts))


def test_the_published_tables_hold_every_cell():
    assert page().keys() == set(TABLE), "run `python benchmarks/composition.py`"


@pytest.mark.parametrize("cell", sorted({*ALWAYS, *DRAWN}, key=label), ids=label)
def test_a_cell_trains_saves_and_resumes_or_is_refused_as_published(cell):
    reason = holds(cell)
    assert page()[cell] == ("yes" if reason is None else composition.shown(cell, reason))


@pytest.mark.slow
@pytest.mark.parametrize("cell", sorted(set(TABLE) - {*ALWAYS, *DRAWN}, key=label), ids=label)
def test_every_other_cell_does_too(cell):
    reason = holds(cell)
    assert page()[cell] == ("yes" if reason is None else composition.shown(cell, reason))


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_two_strategies_give_the_same_bits_in_both_orders_or_a_refusal(pair):
    one, other = (composition.outcome(Cell("lora", order)) for order in (pair, pair[::-1]))
    assert isinstance(one, str) == isinstance(other, str)
    if isinstance(one, str):
        assert all(any(f"'{name}'" in text for name in pair) for text in (one, other))
    else:
        assert one == other


def test_a_cell_that_resumes_to_other_bits_is_noticed(monkeypatch):
    part = STRATEGIES["ema"]
    monkeypatch.setattr(part, "restore", lambda self, state: None)
    with pytest.raises(AssertionError, match="the resumed run differs"):
        holds(Cell("lora", ("ema",)))
