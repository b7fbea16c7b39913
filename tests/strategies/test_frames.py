"""What dynamics share: counted steps, courses over them, what is confined, what is declared and refused."""

from __future__ import annotations

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rankwise.adapters import Change, Pair, attach, grow, pick_sites
from rankwise.adapters.gates import RankWeights
from rankwise.adapters.split import Split
from rankwise.errors import ConflictError
from rankwise.strategies import Confined, Confinement, Counted, Setting, courses
from rankwise.strategies.host import require_branch, require_live, validation_loss

HOST: Any = SimpleNamespace()
TASK: Any = SimpleNamespace()


class Marks(Counted):
    """Counts, and remembers marks."""

    name = "marks"
    Settings = dict
    remembers = ("marks",)
    needs_growth = ("append", "it folds each block; set growth = 'append'")

    def __init__(self) -> None:
        super().__init__()
        self.marks = torch.zeros(3)


def test_steps_are_counted_from_each_tasks_start_and_what_is_remembered_comes_back():
    part, other = Marks(), Marks()
    for tasks in (4, 2):
        part.begin_task(HOST, TASK)
        for step in range(tasks):
            part.follow(HOST, step)
    part.marks[1] = 5.0
    assert part.done == 2 and set(part.state()) == {"done", "marks"}
    state = part.state()
    other.restore(state)
    state["marks"].zero_()
    assert other.done == 2 and other.marks.tolist() == [0.0, 5.0, 0.0]


def test_blocks_that_come_otherwise_than_needed_are_refused_with_the_remedy():
    part = Marks()
    assert part.misfit(Setting(growth="append")) is None
    assert part.misfit(Setting(growth="keep")) == (
        "adapter.growth = 'keep': it folds each block; set growth = 'append'"
    )
    assert Confined.needs_growth is None and Confined().misfit(Setting(growth="planned")) is None


class Plane(Confined):
    """Keeps the first coordinate of a parameter where it is."""

    name = "plane"

    def __init__(self, parameter: nn.Parameter, sides: tuple[bool, bool] = (True, True)) -> None:
        super().__init__()
        self.parameter, self.sides = parameter, sides

    def confines(self) -> tuple[bool, bool]:
        return self.sides

    def confined(self, host: Any) -> Iterable[Confinement]:
        def take_out(values: Tensor) -> None:
            values[0] = 0

        return [(self.parameter, take_out)]


@pytest.mark.parametrize("sides", [(True, True), (True, False), (False, True)])
def test_the_forbidden_part_is_taken_out_of_gradients_and_values(sides):
    parameter = nn.Parameter(torch.tensor([1.0, 2.0]))
    part = Plane(parameter, sides)
    part.shape(HOST, 0)  # nothing has a gradient yet
    parameter.grad = torch.tensor([3.0, 4.0])
    part.shape(HOST, 0)
    assert parameter.grad.tolist() == ([0.0, 4.0] if sides[0] else [3.0, 4.0])
    part.settle(HOST, 0)
    assert parameter.tolist() == ([0.0, 2.0] if sides[1] else [1.0, 2.0])


def host_of(branch: Any) -> Any:
    model = nn.Sequential(nn.Linear(4, 3))
    attach(model, pick_sites(model), branch, {"seed": 0})
    grow(model, [Change("append", "1", 2)], 0)
    return SimpleNamespace(model=model)


def test_an_adapter_without_what_is_needed_is_refused_by_name():
    plain, weighed = host_of(Pair()), host_of(Pair(RankWeights()))
    require_live(weighed, "marks", {"w", "A"}, "rank weights")
    with pytest.raises(ConflictError, match="dynamics 'marks' and an adapter without rank weights: choose the method"):
        require_live(plain, "marks", {"w"}, "rank weights")
    require_branch(plain, "marks", Pair)
    with pytest.raises(ConflictError, match="dynamics 'marks' and an adapter of form Pair: choose the method of"):
        require_branch(plain, "marks", Split)


def test_the_validation_loss_is_the_mean_over_rows():
    host: Any = SimpleNamespace(losses=lambda batch, classes: batch * len(classes))
    host.each = lambda split, do: do(split)
    assert validation_loss(host, torch.tensor([1.0, 2.0, 6.0]), (0, 1)) == 6.0  # pyright: ignore[reportArgumentType]


def test_a_course_stays_falls_and_stays():
    first, last = courses.stretch(40, 0.1, 0.3)
    found = [courses.left(t, first, last) for t in range(41)]
    assert (first, last) == (4, 28) and found[:5] == [1.0] * 5 and found[28:] == [0.0] * 13
    assert all(a > b for a, b in zip(found[4:28], found[5:29], strict=True))
    assert courses.left(3, 3, 3) == 1.0 and courses.left(4, 3, 3) == 0.0


@pytest.mark.parametrize(("total", "stairs"), [(500, 50), (10, 50), (12, 1), (7, 3)])
def test_stairs_rise_one_by_one_and_end(total, stairs):
    found = [courses.stair(i, total // 2, total, stairs) for i in range(total)]
    assert not any(found[: total // 2 + 1]) and found == sorted(found) and max(found) <= stairs - 1
    rising = found[total // 2 + 1 :]  # where each step is a stair, that at `first` is left out
    assert all(b - a <= 1 for a, b in zip(rising, rising[1:], strict=False))


def test_a_warm_up_rises_to_one_and_parts_are_equal():
    assert [courses.rise(since, 0) for since in range(3)] == [1.0] * 3
    assert courses.cuts(30, 3) == {10, 20} and courses.cuts(30, 1) == set() and courses.cuts(4, 4) == {1, 2, 3}
