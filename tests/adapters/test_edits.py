"""The ledger of edits: it never outgrows the weights, and replaying it gives the same bits on the untouched base."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rankwise.adapters import Pair, attach, banks_of, edit, ledger, pick_sites, replay
from rankwise.adapters.edits import moved, owner_of
from rankwise.errors import UsageError
from rankwise.seeds import generator

KINDS: dict[str, Any] = {
    "linear": lambda: nn.Linear(12, 9),
    "embedding": lambda: nn.Embedding(12, 9),
    "conv2d": lambda: nn.Conv2d(3, 9, 2),
}


def base(kind: str) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(KINDS[kind]())
    attach(model, pick_sites(model, "0"), Pair(), {})
    return model


def drawn(key: str, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator(0, key))


def entries() -> list[dict[str, Tensor]]:
    low = [{"up": drawn(f"u{i}", 9, 2), "down": drawn(f"d{i}", 2, 12)} for i in range(4)]
    return [*low, {"update": drawn("whole", 9, 12)}, low[0]]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", range(1, 7))
def test_after_any_number_of_edits_the_ledger_is_no_larger_than_the_weight_and_repeats_them(kind, count):
    model = base(kind)
    ((site, _),) = banks_of(model).values()
    for entry in entries()[:count]:
        edit(model, site, entry)
    held = ledger(model)
    assert sum(tensor.numel() for tensor in held.values()) <= 9 * 12
    again = base(kind)
    replay(again, held)
    assert torch.equal(again[0].base.weight, model[0].base.weight)  # pyright: ignore[reportIndexIssue]
    assert all(torch.equal(tensor, held[name]) for name, tensor in ledger(again).items())


@pytest.mark.parametrize("count", range(1, 7))
def test_what_was_added_is_known_also_where_the_weight_took_its_place(count):
    model = base("linear")
    ((site, _),) = banks_of(model).values()
    before = model[0].base.weight.detach().clone()  # pyright: ignore[reportIndexIssue]
    for entry in entries()[:count]:
        edit(model, site, entry)
    again = base("linear")
    replay(again, ledger(model))
    for each in (model, again):
        parts = moved(owner_of(each, site), site)
        total = sum(part["update"] if "update" in part else part["up"] @ part["down"] for part in parts)
        torch.testing.assert_close(before + total, model[0].base.weight.detach(), rtol=0, atol=1e-5)  # pyright: ignore[reportIndexIssue]


@pytest.mark.parametrize(
    "entry",
    [
        {"up": torch.ones(9, 2)},
        {"weight": torch.ones(12, 9)},
        {"update": torch.ones(9, 12), "weight": torch.ones(9, 12)},
    ],
)
def test_what_is_no_entry_is_refused_and_changes_nothing(entry):
    model = base("linear")
    ((site, _),) = banks_of(model).values()
    before = model[0].base.weight.detach().clone()  # pyright: ignore[reportIndexIssue]
    with pytest.raises(UsageError, match="'0'"):
        edit(model, site, entry)
    assert torch.equal(model[0].base.weight, before) and not ledger(model)  # pyright: ignore[reportIndexIssue]
