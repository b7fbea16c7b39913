"""Every method with every strategy trains, saves and resumes, or is refused by name; two strategies go both ways round.

The whole table is slow; a part of it that a seed draws, another one in each version of the table, is always tested.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from loading import benchmark

from rankwise import papers
from rankwise.strategies import STRATEGIES

ROOT = Path(__file__).parents[2]
composition = benchmark("composition")
"""Makes the table."""
TABLE = [(method, name) for method in papers.slugs() for name in ("", *STRATEGIES)]
DRAWN = sorted(random.Random(f"{len(TABLE)} cells").sample(TABLE, 12))
ALWAYS = [(method, name) for method in ("lora", "mora", "finetune") for name in STRATEGIES]
PAIRS = [(a, b) for i, a in enumerate(STRATEGIES) for b in list(STRATEGIES)[i + 1 :]]


def holds(method: str, name: str) -> str | None:
    if "quantize" in papers.method(method).defaults.get("model", {}):
        pytest.importorskip("bitsandbytes")
    return composition.refusal(composition.Cell(method, (name,) if name else ()))


def page() -> dict[tuple[str, str], str]:
    """Return the cells of the published table, the text of the reason in the place of its number."""
    text = (ROOT / "docs" / "composition.md").read_text(encoding="utf-8")
    rows = [[cell.strip(" `") for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    reasons = dict(line.split(". ", 1) for line in text.splitlines() if line.split(".")[0].isdigit())
    names = ["", *rows[0][2:]]
    marks = {(row[0], name): mark for row in rows[2:] for name, mark in zip(names, row[1:], strict=True)}
    return {cell: reasons.get(mark.strip("[]"), mark) for cell, mark in marks.items()}


def test_the_published_table_holds_every_cell():
    assert page().keys() == set(TABLE), "run `python benchmarks/composition.py`"


@pytest.mark.parametrize(("method", "name"), sorted({*ALWAYS, *DRAWN}))
def test_a_cell_trains_saves_and_resumes_or_is_refused_as_published(method, name):
    reason = holds(method, name)
    assert page()[method, name] == ("yes" if reason is None else " ".join(reason.split()))


@pytest.mark.slow
@pytest.mark.parametrize(("method", "name"), sorted(set(TABLE) - {*ALWAYS, *DRAWN}))
def test_every_other_cell_does_too(method, name):
    reason = holds(method, name)
    assert page()[method, name] == ("yes" if reason is None else " ".join(reason.split()))


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_two_strategies_give_the_same_bits_in_both_orders_or_a_refusal(pair):
    one, other = (composition.outcome(composition.Cell("lora", order)) for order in (pair, pair[::-1]))
    assert isinstance(one, str) == isinstance(other, str)
    if isinstance(one, str):
        assert all(any(f"'{name}'" in text for name in pair) for text in (one, other))
    else:
        assert one == other


def test_a_cell_that_resumes_to_other_bits_is_noticed(monkeypatch):
    part = STRATEGIES["ema"]
    monkeypatch.setattr(part, "restore", lambda self, state: None)
    with pytest.raises(AssertionError, match="the resumed run differs"):
        holds("lora", "ema")
