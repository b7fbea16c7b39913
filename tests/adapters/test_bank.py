"""Blocks that are appended, frozen, thawed, selected and dropped: values and order never get lost on the way."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rankwise.adapters import Bank, Spec
from rankwise.errors import UsageError

SPECS = {"A": Spec(("rank", "in"), "down"), "B": Spec(("out", "rank"), "up"), "g": Spec(("rank",), "gate")}


def values(size: int, seed: int) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    shapes = {"A": (size, 3), "B": (4, size), "g": (size,)}
    return {name: torch.randn(shape, generator=rng) for name, shape in shapes.items()}


def bank_of(*sizes: int, frozen: int = 0) -> Bank:
    bank = Bank(SPECS, "rank")
    for i, size in enumerate(sizes):
        bank.append(f"t{i}", values(size, i))
        if i + 1 == frozen:
            bank.freeze()
    return bank


def columns(bank: Bank) -> dict[str, dict[str, Tensor]]:
    """What each block holds, by label."""
    return {label: {name: bank.view([label])[name].detach().clone() for name in SPECS} for label in bank.labels}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def check(bank: Bank) -> None:
    """What holds for every bank, whatever was done to it."""
    assert len(set(bank.labels)) == len(bank.labels)
    assert [block.live for block in bank.blocks] == sorted(block.live for block in bank.blocks)
    assert bank.size == sum(block.size for block in bank.blocks)
    live = sum(block.size for block in bank.blocks if block.live)
    for name, dim in bank.dims.items():
        assert sum(p.shape[dim] for n, p in bank.named_parameters() if n == f"live.{name}") == live
        assert sum(b.shape[dim] for n, b in bank.named_buffers() if n == f"frozen.{name}") == bank.size - live
    assert all(p.requires_grad and p.is_contiguous() and p.grad is None for p in bank.parameters())
    assert all(not b.requires_grad and b.is_contiguous() for b in bank.buffers())


OPS = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.integers(1, 3)),
        st.tuples(st.just("freeze"), st.just(0)),
        st.tuples(st.just("thaw"), st.integers(0, 7)),
        st.tuples(st.just("select"), st.integers(0, 255)),
        st.tuples(st.just("drop"), st.integers(0, 9)),
    ),
    max_size=9,
)


@settings(max_examples=60, deadline=None)
@given(OPS)
def test_any_course_of_changes_keeps_what_it_should(ops):
    bank, expected = Bank(SPECS, "rank"), {}
    for number, (op, word) in enumerate(ops):
        labels = bank.labels
        if op == "append":
            bank.append(f"t{number}", values(word, number))
            expected[f"t{number}"] = values(word, number)
        elif op == "freeze":
            bank.freeze()
        elif op == "thaw":
            bank.thaw([label for i, label in enumerate(labels) if word >> i & 1])
        elif op == "select":
            keep = [p for p in range(bank.size) if word >> (p % 8) & 1]
            cut = {label: [i for i, p in enumerate(bank.positions(label).tolist()) if p in keep] for label in labels}
            bank.select(torch.tensor(keep, dtype=torch.long))
            for label, inside in cut.items():
                old = expected.pop(label)
                if inside:
                    expected[label] = {n: t.index_select(bank.dims[n], torch.tensor(inside)) for n, t in old.items()}
        elif labels:
            bank.drop(labels[word % len(labels)])
            del expected[labels[word % len(labels)]]
        check(bank)
        assert set(bank.labels) == set(expected)
        assert all(same(held, expected[label]) for label, held in columns(bank).items())


@settings(max_examples=30, deadline=None)
@given(OPS)
def test_state_and_restore_are_inverse(ops):
    bank = bank_of(2, 1, 3, frozen=2)
    for number, (op, word) in enumerate(ops):
        if op == "append":
            bank.append(f"n{number}", values(word, number))
        elif op == "freeze":
            bank.freeze()
        elif op == "thaw" and bank.labels:
            bank.thaw([bank.labels[word % len(bank.labels)]])
    other = Bank(SPECS, "rank")
    other.restore(*bank.state())
    assert other.blocks == bank.blocks
    check(other)
    first, second = other.state()[0], bank.state()[0]
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_append_refuses_a_label_twice_and_tensors_that_disagree():
    bank = bank_of(2, frozen=1)
    with pytest.raises(UsageError, match="'t0' exists already"):
        bank.append("t0", values(1, 5))
    with pytest.raises(UsageError, match="disagree on axis 'rank'"):
        bank.append("t1", {**values(1, 5), "A": torch.zeros(2, 3)})
    assert bank.labels == ("t0",)


def test_frozen_blocks_get_no_gradient_and_no_step():
    bank = bank_of(2, 3, frozen=1)
    before = {name: buffer.clone() for name, buffer in bank.named_buffers()}
    optimizer = torch.optim.AdamW(bank.parameters(), lr=0.1, weight_decay=0.5)
    for _ in range(3):
        torch.stack([bank.tensor(name).square().sum() for name in SPECS]).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert all(torch.equal(buffer, before[name]) for name, buffer in bank.named_buffers())
    assert not torch.equal(bank.view(["t1"])["A"], values(3, 1)["A"])
    bank.requires_grad_(True)
    assert not any(buffer.requires_grad for buffer in bank.buffers())


def test_thaw_refuses_a_block_it_does_not_hold():
    with pytest.raises(UsageError, match="did you mean 't1'"):
        bank_of(1, 1).thaw(["t2", "t11"][1:])
    with pytest.raises(UsageError, match="no block"):
        bank_of(1).drop("x")


@pytest.mark.parametrize("position", [-1, 3])
def test_select_refuses_positions_that_do_not_exist(position):
    bank = bank_of(2, 1)
    with pytest.raises(UsageError, match=f"position {position}"):
        bank.select(torch.tensor([0, position]))
    assert bank.size == 3


def test_view_orders_by_the_bank_and_passes_over_strangers():
    bank = bank_of(1, 2, 3, frozen=2)
    view = bank.view(["t2", "nobody", "t0"])
    assert (view.labels, view.sizes) == (("t0", "t2"), (1, 3))
    assert torch.equal(view["B"], torch.cat([values(1, 0)["B"], values(3, 2)["B"]], 1))
    assert [piece.shape[-1] for piece in view.split(torch.zeros(5, 4))] == [1, 3]
    assert len(bank.view().parts) == 2
    assert bank.view([]).sizes == ()


def test_the_view_of_a_live_block_carries_gradient():
    bank = bank_of(1, 2, 2, frozen=1)
    bank.view(["t1"])["A"].sum().backward()
    gradient = bank.live["A"].grad
    assert gradient is not None and gradient.sum(1).tolist() == [3, 3, 0, 0]


@pytest.mark.parametrize(
    "blocks",
    [
        [{"label": "t0", "size": 3, "live": False}, {"label": "t1", "size": 1, "live": True}],
        [{"label": "t0", "size": 2, "live": False}],
        [{"label": "t0", "size": 2, "live": True}, {"label": "t1", "size": 1, "live": True}],
        [{"label": "t0", "size": 1, "live": False}] * 2 + [{"label": "t1", "size": 1, "live": True}],
        [{"label": "t1", "size": 1, "live": True}, {"label": "t0", "size": 2, "live": False}],
    ],
    ids=["longer", "missing", "halves", "twice", "order"],
)
def test_restore_refuses_blocks_that_disagree_and_changes_nothing(blocks):
    tensors, before = bank_of(2, 1, frozen=1).state()
    bank = bank_of(1)
    with pytest.raises(UsageError):
        bank.restore(tensors, blocks)
    assert bank.labels == ("t0",) and bank.size == 1
    bank.restore(tensors, before)
    assert bank.size == 3


def test_restore_refuses_a_tensor_that_is_missing():
    tensors, blocks = bank_of(2).state()
    del tensors["live.g"]
    with pytest.raises(UsageError, match=r"live\.g: length 0"):
        Bank(SPECS, "rank").restore(tensors, blocks)


def test_a_bank_keeps_the_dtype_it_was_cast_to():
    bank = bank_of(2, frozen=1).to(torch.float64)
    bank.append("t1", values(1, 1))
    assert {t.dtype for t in (*bank.parameters(), *bank.buffers())} == {torch.float64}


def test_starting_values_are_copied_and_made_contiguous():
    start = values(3, 0)
    start["A"] = start["A"].T.contiguous().T
    bank = Bank(SPECS, "rank")
    bank.append("t0", start)
    start["A"].zero_()
    assert bank.live["A"].is_contiguous() and bank.live["A"].abs().sum() > 0
