"""Batches are functions of counters: the same whenever, wherever and in whatever order they are asked for."""

from __future__ import annotations

import threading
import time
from collections import Counter

import pytest
import torch

from rankwise.errors import DataError
from rankwise.streams import Batch, Loader, Split, concat, encoded, in_order, lengths_of


def split(rows: int = 10, first: int = 0) -> Split:
    ids = torch.arange(first, first + rows)
    return Split([f"text {i}" for i in ids.tolist()], ids % 3, ids)


def encode(inputs) -> dict[str, torch.Tensor]:
    numbers = [int(text.split()[1]) for text in inputs]
    return {"x": torch.tensor(numbers, dtype=torch.float32)[:, None]}


def loader(rows: int = 10, size: int = 4, seed: int = 0, name: str = "a") -> Loader:
    return Loader(split(rows), encode, size, seed, name)


@pytest.mark.parametrize(("rows", "size", "steps"), [(10, 4, 3), (8, 4, 2), (3, 4, 1), (1, 1, 1)])
def test_an_epoch_shows_every_row_once(rows, size, steps):
    batches = loader(rows, size)
    assert batches.steps_per_epoch == steps
    for epoch in range(3):
        ids = [i for step in range(steps) for i in batches.batch(epoch * steps + step).ids.tolist()]
        assert sorted(ids) == list(range(rows))


def test_inputs_labels_and_ids_belong_together():
    for step in range(6):
        batch = loader().batch(step)
        assert batch.inputs["x"][:, 0].tolist() == batch.ids.tolist()
        assert torch.equal(batch.labels, batch.ids % 3)


def test_order_depends_on_seed_name_and_epoch_alone():
    def epoch(number: int, **settings) -> list[int]:
        made = loader(**settings)
        return [i for step in range(3) for i in made.positions(3 * number + step).tolist()]

    base = epoch(0)
    torch.manual_seed(5)
    assert epoch(0) == base
    others = [epoch(1), epoch(0, seed=1), epoch(0, name="b")]
    assert all(other != base for other in others)


def test_random_access_equals_the_stream():
    made = loader()
    backwards = {step: made.batch(step).ids.tolist() for step in reversed(range(7))}
    assert [batch.ids.tolist() for batch in made.stream(0, 7, 0)] == [backwards[step] for step in range(7)]
    assert [batch.ids.tolist() for batch in made.stream(5, 7, 0)] == [backwards[5], backwards[6]]


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_workers_keep_the_order(workers):
    def slow(inputs) -> dict[str, torch.Tensor]:
        time.sleep(0.002 * (len(inputs[0]) % 3))
        return encode(inputs)

    made = Loader(split(23), slow, 4, 0, "a")
    plain = [batch.ids.tolist() for batch in made.stream(3, 14, 0)]
    assert [batch.ids.tolist() for batch in made.stream(3, 14, workers)] == plain


def test_workers_do_not_run_far_ahead_and_end_with_the_stream():
    asked: Counter[str] = Counter()

    def counted(inputs) -> dict[str, torch.Tensor]:
        asked["calls"] += 1
        return encode(inputs)

    before = threading.active_count()
    stream = Loader(split(40), counted, 1, 0, "a").stream(0, 40, 2)
    next(stream)
    time.sleep(0.05)
    assert 1 <= asked["calls"] <= 4
    stream.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert threading.active_count() == before


def test_an_error_in_a_worker_reaches_the_reader():
    def broken(inputs) -> dict[str, torch.Tensor]:
        raise ValueError("cannot read")

    with pytest.raises(ValueError, match="cannot read"):
        next(iter(Loader(split(), broken, 4, 0, "a").stream(0, 2, 2)))


def test_an_empty_stretch_of_the_stream():
    assert list(loader().stream(4, 4, 0)) == []
    assert list(loader().stream(4, 4, 2)) == []


@pytest.mark.parametrize("rows", [1, 2, 3, 7, 12])
@pytest.mark.parametrize("parts", [1, 2, 3, 5])
def test_cut(rows, parts):
    batch = encoded(split(rows), encode)
    cut = batch.cut(parts)
    assert len(cut) == parts
    assert torch.equal(torch.cat([part.ids for part in cut]), batch.ids)
    assert torch.equal(torch.cat([part.inputs["x"] for part in cut]), batch.inputs["x"])
    sizes = [len(part) for part in cut]
    assert max(sizes) - min(sizes) <= 1


def test_cut_for_processes_and_for_micro_batches_is_one_cut():
    """Two processes of three micro-batches each see what one process of six sees."""
    batch = encoded(split(11), encode)
    assert [part.ids.tolist() for part in batch.cut(6)] == [
        part.ids.tolist() for half in (batch.cut(6)[:3], batch.cut(6)[3:]) for part in half
    ]
    assert sum(len(part) for part in batch.cut(6)[:3]) in (5, 6)


def test_in_order_reads_every_row_in_order():
    batches = list(in_order(split(10), encode, 4))
    assert [len(batch) for batch in batches] == [4, 4, 2]
    assert torch.cat([batch.ids for batch in batches]).tolist() == list(range(10))
    assert list(in_order(split(10).take([]), encode, 4)) == []


def test_concat_numbers_rows_anew():
    together = concat([split(3), split(2, first=1)])
    assert together.ids.tolist() == [0, 1, 2, 3, 4]
    assert together.labels.tolist() == [0, 1, 2, 1, 2]
    assert list(together.inputs) == ["text 0", "text 1", "text 2", "text 1", "text 2"]


def test_concat_of_pictures_of_two_sizes():
    small = Split(torch.zeros(2, 8, 8, dtype=torch.uint8), torch.tensor([0, 1]), torch.arange(2))
    large = Split(torch.ones(1, 16, 16, dtype=torch.uint8), torch.tensor([1]), torch.arange(1))
    together = concat([small, small])
    assert isinstance(together.inputs, torch.Tensor)
    assert together.inputs.shape == (4, 8, 8)
    mixed = concat([small, large])
    assert [tuple(row.shape) for row in mixed.inputs] == [(8, 8), (8, 8), (16, 16)]
    assert mixed.labels.tolist() == [0, 1, 1]


def test_to_moves_everything():
    batch = Batch({"x": torch.zeros(1)}, torch.zeros(1, dtype=torch.long), torch.zeros(1, dtype=torch.long))
    moved = batch.to(torch.device("meta"))
    assert {moved.labels.device.type, moved.ids.device.type, moved.inputs["x"].device.type} == {"meta"}


def ragged(rows: int = 700) -> Split:
    """Texts of very different lengths, in no order."""
    lengths = torch.randint(1, 400, (rows,), generator=torch.Generator().manual_seed(4)).tolist()
    ids = torch.arange(rows)
    return Split(["x" * n for n in lengths], ids % 3, ids)


def widths(texts) -> dict[str, torch.Tensor]:
    return {"x": torch.tensor([[len(text)] for text in texts])}


def bucketing(seed: int = 0, name: str = "a", size: int = 16) -> Loader:
    return Loader(ragged(), widths, size, seed, name, lengths_of(ragged()))


def test_bucketed_epochs_show_every_row_once_and_each_differently():
    made = bucketing()
    epochs = [[made.batch(epoch * 44 + i).ids.tolist() for i in range(44)] for epoch in range(2)]
    for epoch in epochs:
        assert sorted(i for batch in epoch for i in batch) == list(range(700))
        assert sum(len(batch) < 16 for batch in epoch) == 1
    assert {frozenset(batch) for batch in epochs[0]}.isdisjoint({frozenset(batch) for batch in epochs[1]})


def test_bucketed_batches_are_functions_of_counters():
    made = bucketing()
    backwards = {step: made.batch(step).ids.tolist() for step in reversed(range(50))}
    assert [batch.ids.tolist() for batch in bucketing().stream(3, 50, 2)] == [backwards[step] for step in range(3, 50)]
    others = [bucketing(seed=1), bucketing(name="b")]
    assert all(other.batch(0).ids.tolist() != backwards[0] for other in others)


def test_bucketed_batches_come_in_no_order_of_length_and_save_most_padding():
    def padding(loader: Loader) -> tuple[float, list[int]]:
        widest = [int(loader.batch(i).inputs["x"].max()) for i in range(44)]
        slots = sum(w * len(loader.positions(i)) for i, w in enumerate(widest))
        return 1 - sum(len(text) for text in loader.split.inputs) / slots, widest

    share, widest = padding(bucketing())
    plain, _ = padding(Loader(ragged(), widths, 16, 0, "a"))
    assert plain > 0.4 and share < 0.1
    assert widest != sorted(widest) and widest != sorted(widest, reverse=True)


def test_lengths_count_both_texts_of_a_pair_and_images_have_none():
    pairs = Split([("ab", "cde"), ("", "x")], torch.zeros(2, dtype=torch.long), torch.arange(2))
    assert lengths_of(pairs).tolist() == [5, 1]
    images = Split(torch.zeros(2, 4, 4, dtype=torch.uint8), torch.zeros(2, dtype=torch.long), torch.arange(2))
    with pytest.raises(DataError, match=r"train\.bucket"):
        lengths_of(images)
