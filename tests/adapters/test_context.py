"""What flows to a site in a forward, and what comes back out of it."""

from __future__ import annotations

import torch

from rankwise.adapters import Context, Sink


def test_means_are_over_tokens_then_over_sites():
    sink = Sink()
    sink.put("a", "share", torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]))
    sink.put("a", "share", torch.tensor([[0.0, 0.0]]))
    sink.put("b", "share", torch.ones(2, 3, 2))
    assert sink.means() == {"share": [0.75, 0.625]}


def test_padding_is_left_out():
    sink = Sink()
    tokens = torch.tensor([[True, False], [True, True]])
    sink.put("a", "x", torch.tensor([[[1.0], [9.0]], [[2.0], [3.0]]]), tokens)
    assert sink.means() == {"x": [2.0]}
    sink.put("b", "x", torch.tensor([[4.0], [6.0]]), tokens)  # pooled rows: the mask does not speak of them
    assert sink.means() == {"x": [3.5]}


def test_each_site_by_itself_over_all_sinks():
    """Means weigh tokens, not sinks; what has another width in another sink is left out."""
    first, second = Sink(), Sink()
    first.put("b", "x", torch.tensor([[1.0], [2.0]]))
    second.put("b", "x", torch.tensor([[6.0]]))
    first.put("a", "share", torch.tensor([[1.0, 0.0]]))
    second.put("a", "share", torch.tensor([[1.0]]))
    second.put("a", "y", torch.tensor([[4.0]]))
    assert Sink.by_site([first, second]) == {"a": {"y": [4.0]}, "b": {"x": [3.0]}}
    assert Sink.by_site([Sink()]) == {}


def test_sums_add_up_over_processes():
    parts = [Sink(), Sink()]
    for i, sink in enumerate(parts):
        sink.put("b", "x", torch.full((i + 1, 1), 3.0 * i))
        sink.put("a", "y", torch.ones(1, 1))
    for mine, other in zip(parts[0].sums(), parts[1].sums(), strict=True):
        mine += other
    assert parts[0].means() == {"x": [2.0], "y": [1.0]}


def test_outside_a_learner_all_blocks_act_and_nothing_is_measured():
    context = Context()
    assert context.blocks is None and context.tokens is None and context.sink is None and not context.draws
    assert Sink().means() == {}
