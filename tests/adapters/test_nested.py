"""Nested ranks: how long a prefix is drawn, what lies beyond it, and how what a step must not move is put back."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rankwise.adapters import Change, Pair, attach, banks_of, grow, pick_sites
from rankwise.adapters.nested import Drawing, alpha, hold, longest, outside, put_back, shortened


def model_of(*ranks: int) -> nn.Module:
    """Return a model with a site a rank, each with a live block of so many ranks."""
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in ranks))
    attach(model, pick_sites(model), Pair(), {"seed": 0})
    grow(model, [Change("append", "1", rank, str(i)) for i, rank in enumerate(ranks)], 0)
    return model


@pytest.mark.parametrize("law", ["uniform", "geometric"])
def test_lengths_lie_between_the_smallest_and_the_block_and_reach_both(law):
    drawing = Drawing(smallest=2, law=law, success=0.4)
    found = [drawing.length(u / 1000, 5) for u in range(1000)]
    assert set(found) == {2, 3, 4, 5} and found == sorted(found)
    assert {drawing.length(u / 10, 1) for u in range(10)} == {1}
    shares = [found.count(b) / 1000 for b in (2, 3, 4, 5)]
    wanted = [0.4 * 0.6**i for i in range(4)] if law == "geometric" else [1.0] * 4
    assert shares == pytest.approx([w / sum(wanted) for w in wanted], abs=2e-3)


@pytest.mark.parametrize(
    ("b", "newest", "beyond"),
    [(2, False, {3: [2], 2: []}), (2, True, {3: [0, 2], 2: [0]}), (3, True, {3: [0, 1], 2: [0]})],
)
def test_what_lies_outside_of_a_prefix(b, newest, beyond):
    model = model_of(3, 2)
    parts = list(outside(model, b, newest=newest))
    assert longest(model) == 3 and len(parts) == 4
    for parameter, index in parts:
        *whole, marks = index
        assert marks.nonzero().flatten().tolist() == beyond[len(marks)]
        assert len(whole) == parameter.shape.index(len(marks))


def test_what_is_held_has_no_gradient_and_comes_back_to_the_bit():
    model = model_of(3)
    ((_, bank),) = banks_of(model).values()
    with torch.no_grad():
        bank.live["B"].fill_(2.0)
    rule = torch.optim.AdamW(bank.live.parameters(), lr=0.1, weight_decay=0.5)
    before = bank.live["A"].detach().clone()
    bank.live["A"].sum().backward()
    held = hold(outside(model, 1))
    assert bank.live["A"].grad is not None and bank.live["A"].grad[0].all() and not bank.live["A"].grad[1:].any()
    rule.step()
    assert not torch.equal(bank.live["A"][1:], before[1:])  # the decay moves them
    put_back(held)
    assert torch.equal(bank.live["A"][1:], before[1:]) and not torch.equal(bank.live["A"][0], before[0])


def test_only_the_last_block_is_shortened():
    model = model_of(3, 2)
    grow(model, [Change("freeze"), Change("append", "2", 4)], 0)
    grow(model, shortened(model, 3), 0)
    assert [[block.size for block in bank.blocks] for _, bank in banks_of(model).values()] == [[3, 3], [2, 3]]
    grow(model, shortened(model, 9), 0)
    assert [bank.size for _, bank in banks_of(model).values()] == [6, 5]


def test_a_prefix_has_the_scale_of_a_lora_of_its_length():
    assert alpha(0.5, 8) == 4.0
