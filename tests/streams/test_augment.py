"""Views of training pictures are what their names say, and functions of seed, task, epoch and row alone."""

from __future__ import annotations

from collections import Counter
from typing import get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from rankwise.config import TrainSettings, load_config
from rankwise.errors import UsageError
from rankwise.streams import Loader, Split, views
from rankwise.streams.augment import OPERATIONS, crop, flip

BOTH = ("crop", "flip")


def pictures(rows: int = 12, shape: tuple[int, ...] = (16, 24)) -> Tensor:
    """Pictures without a black pixel, so that what comes in at an edge can be told."""
    return torch.randint(1, 256, (rows, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))


def split(rows: int = 12, shape: tuple[int, ...] = (16, 24)) -> Split:
    ids = torch.arange(100, 100 + rows)
    return Split(pictures(rows, shape), ids % 3, ids)


def encode(inputs) -> dict[str, Tensor]:
    return {"x": inputs if isinstance(inputs, Tensor) else torch.stack(list(inputs))}


def loader(augment: tuple[str, ...] = BOTH, seed: int = 0, name: str = "a", size: int = 5, order=None) -> Loader:
    rows = split() if order is None else split().take(order)
    return Loader(rows, encode, size, seed, name, augment=augment)


def by_row(made: Loader, epoch: int = 0, workers: int = 0) -> dict[int, Tensor]:
    """The view of each row in an epoch."""
    first = epoch * made.steps_per_epoch
    batches = made.stream(first, first + made.steps_per_epoch, workers)
    return {int(i): x for batch in batches for i, x in zip(batch.ids, batch.inputs["x"], strict=True)}


def same(one: dict[int, Tensor], other: dict[int, Tensor]) -> float:
    """Share of the rows whose views are equal."""
    assert one.keys() == other.keys()
    return sum(torch.equal(one[row], other[row]) for row in one) / len(one)


def shifts(before: Tensor, after: Tensor) -> list[tuple[int, int]]:
    """Every (down, right) by which `after` is `before` moved, black coming in."""
    height, width = before.shape[:2]
    found = []
    for down in range(-height // 8, height // 8 + 1):
        for right in range(-width // 8, width // 8 + 1):
            moved = torch.zeros_like(before)
            taken = before[max(-down, 0) : height - max(down, 0), max(-right, 0) : width - max(right, 0)]
            moved[max(down, 0) : height + min(down, 0), max(right, 0) : width + min(right, 0)] = taken
            found += [(down, right)] if torch.equal(moved, after) else []
    return found


# what the operations do


@pytest.mark.parametrize("shape", [(16, 24), (16, 24, 3)])
def test_a_crop_is_a_shift_by_an_eighth_at_most_and_every_shift_occurs(shape):
    before = pictures(15, shape)
    after = crop(before, range(15))  # 5 places down times 3 ... 7 across: the first 15 draws reach 5 x 3 of them
    moved = [shifts(a, b) for a, b in zip(before, after, strict=True)]
    assert all(len(found) == 1 for found in moved)
    assert len({found[0] for found in moved}) == 15
    drawn = views(split(600, shape), ["crop"], 0, "a", 0).inputs
    times = Counter(shifts(a, b)[0] for a, b in zip(pictures(600, shape), drawn, strict=True))
    assert len(times) == 5 * 7
    assert max(times.values()) < 45  # 17 expected each


def test_a_flip_mirrors_left_to_right_in_half_of_the_views():
    for shape in ((16, 24), (16, 24, 3)):
        before = pictures(400, shape)
        after = views(split(400, shape), ["flip"], 0, "a", 0).inputs
        turned = [torch.equal(b, a.flip(1)) for a, b in zip(before, after, strict=True)]
        kept = [torch.equal(b, a) for a, b in zip(before, after, strict=True)]
        assert all(t != k for t, k in zip(turned, kept, strict=True))
        assert 160 < sum(turned) < 240
    assert torch.equal(flip(before, [1] * 400), before.flip(2))


def test_small_pictures_are_not_shifted():
    assert torch.equal(crop(pictures(4, (7, 7)), [1, 2, 3, 4]), pictures(4, (7, 7)))


def test_nothing_asked_changes_nothing_and_what_is_given_is_never_changed():
    rows = split()
    assert views(rows, (), 0, "a", 0) is rows
    seen = views(rows, BOTH, 0, "a", 0)
    assert torch.equal(rows.inputs, pictures())
    assert torch.equal(seen.labels, rows.labels) and torch.equal(seen.ids, rows.ids)


def test_pictures_of_different_sizes_are_seen_as_they_would_be_in_a_tensor():
    shapes = [(16, 24), (9, 8, 3), (16, 24), (30, 8)]
    arrays = [pictures(1, shape)[0].numpy() for shape in shapes]
    mixed = Split(arrays, torch.zeros(4, dtype=torch.int64), torch.arange(4))
    seen = views(mixed, BOTH, 0, "a", 0).inputs
    assert [tuple(picture.shape) for picture in seen] == shapes
    pair = Split(torch.from_numpy(np.stack([arrays[0], arrays[2]])), torch.zeros(2).long(), torch.tensor([0, 2]))
    together = views(pair, BOTH, 0, "a", 0).inputs
    assert torch.equal(seen[0], together[0]) and torch.equal(seen[2], together[1])


# what they depend on


def test_a_view_depends_on_the_row_and_not_on_its_company():
    base = by_row(loader())
    torch.manual_seed(5)
    assert same(by_row(loader()), base) == 1
    assert same(by_row(loader(size=1)), base) == same(by_row(loader(size=12)), base) == 1
    assert same(by_row(loader(order=torch.arange(12).flip(0))), base) == 1
    assert same(by_row(loader(augment=("flip", "crop"))), base) == 1


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_workers_and_where_a_stream_starts_do_not_matter(workers):
    made = loader()
    plain = [made.batch(step).inputs["x"] for step in reversed(range(9))][::-1]
    for first in (0, 4):
        seen = [batch.inputs["x"] for batch in made.stream(first, 9, workers)]
        assert all(torch.equal(a, b) for a, b in zip(seen, plain[first:], strict=True))


def test_seeds_tasks_and_epochs_give_other_views():
    base = by_row(loader())
    others = [by_row(loader(seed=1)), by_row(loader(name="b")), by_row(loader(), epoch=1)]
    assert all(same(other, base) < 0.3 for other in others)
    assert same(by_row(loader(augment=())), base) < 0.3


def test_the_rows_of_a_batch_are_those_without_views():
    one, other = loader(), loader(augment=())
    assert all(torch.equal(one.positions(step), other.positions(step)) for step in range(6))


def test_one_operation_draws_the_same_beside_another():
    cropped = by_row(loader(augment=("crop",)))
    both = by_row(loader())
    assert all(torch.equal(both[i], x) or torch.equal(both[i], x.flip(1)) for i, x in cropped.items())


# the setting


def test_the_schema_knows_the_operations_there_are():
    words = get_args(get_args(get_args(TrainSettings.model_fields["augment"].annotation)[0])[0])
    assert words == tuple(OPERATIONS)


def test_the_setting_is_a_list_without_order_and_one_name_counts_as_one():
    assert load_config({"train": {"augment": ["flip", "crop"]}}).train.augment == ["crop", "flip"]
    assert load_config({}, ["train.augment=crop"]).train.augment == ["crop"]
    assert load_config({}).train.augment is None
    assert load_config({"train": {"augment": []}}).train.augment is None


@pytest.mark.parametrize(("value", "said"), [(["crpo"], "did you mean 'crop'"), (["flip", "flip"], "a name twice")])
def test_a_wrong_setting_is_refused(value, said):
    with pytest.raises(UsageError, match=rf"train\.augment.*{said}"):
        load_config({"train": {"augment": value}})
