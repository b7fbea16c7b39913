"""Which strategies go together, and what a strategy does that says nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import pytest
import torch

from rankwise.adapters import Change
from rankwise.errors import ConflictError
from rankwise.strategies import STRATEGIES, Replay, ReplaySettings, Setting, Strategy, check_together
from rankwise.strategies.base import Mode
from rankwise.strategies.host import Host


class Adds(Strategy):
    name = "adds"
    writes: ClassVar[Mapping[str, Mode]] = {"loss": "add"}
    needs_sequence = False


class Sets(Strategy):
    name = "sets"
    writes: ClassVar[Mapping[str, Mode]] = {"loss": "set"}


def replay(size: int = 10) -> Replay:
    return Replay(ReplaySettings(size=size), 0)


def test_additions_compose_in_any_number():
    check_together([], Setting())
    check_together([Adds(), Adds(), replay()], Setting())
    check_together([Adds()], Setting(sequence=False))


@pytest.mark.parametrize("order", [(Adds, Sets), (Sets, Adds), (Sets, Sets)])
def test_what_one_sets_no_other_may_write(order):
    first, second = (kind() for kind in order)
    with pytest.raises(ConflictError, match=f"strategies '{first.name}' and '{second.name}' both set loss"):
        check_together([first, second], Setting())


def test_two_replays_are_refused_by_name():
    with pytest.raises(ConflictError, match="'replay' and 'replay' both set replay buffer; keep one"):
        check_together([replay(), Adds(), replay(5)], Setting())


def test_a_strategy_that_needs_a_past_is_refused_where_all_tasks_are_learnt_at_once():
    with pytest.raises(ConflictError, match="strategy 'replay' and order = 'at-once'.*remove 'replay'"):
        check_together([Adds(), replay()], Setting(sequence=False))


def test_hooks_do_nothing_unless_a_strategy_says_otherwise():
    quiet = Strategy()
    assert quiet.state() == {} and quiet.remembered().shape == (0, 2)
    assert quiet.remembered().dtype == torch.long and not quiet.learns_old_classes


def test_every_strategy_is_listed_under_its_own_name():
    assert all(part(part.Settings(), 0).name == name for name, part in STRATEGIES.items())


def test_rehearsal_beside_blocks_of_their_own_is_refused():
    replay = Replay(ReplaySettings(), 0)
    check_together([replay], Setting())
    with pytest.raises(ConflictError, match="strategy 'replay' and oracle = true.*remove 'replay'"):
        check_together([replay], Setting(oracle=True))


class Needs(Strategy):
    name = "needs"
    needs = frozenset({"replay buffer"})


class Reshapes(Strategy):
    name = "reshapes"

    def changes(self, host: Host, step: int) -> Sequence[Change]:
        return ()


class Steady(Strategy):
    name = "steady"

    def misfit(self, setting: Setting) -> str | None:
        return f"{setting.reshaper!r}, which moves; remove one" if setting.reshaper else None


@pytest.mark.parametrize("order", [(Needs, Replay), (Replay, Needs)])
def test_what_one_needs_another_must_write(order):
    check_together([replay() if kind is Replay else kind() for kind in order], Setting())
    with pytest.raises(ConflictError, match="strategy 'needs' needs the replay buffer of another strategy"):
        check_together([Needs(), Adds()], Setting())


@pytest.mark.parametrize("order", [(Steady, Reshapes), (Reshapes, Steady)])
def test_a_part_that_changes_the_structure_is_told_to_the_others(order):
    with pytest.raises(ConflictError, match="strategy 'steady' and 'reshapes', which moves"):
        check_together([kind() for kind in order], Setting())
    check_together([Steady(), Adds()], Setting())
    assert Reshapes.reshapes() and not Steady.reshapes()
