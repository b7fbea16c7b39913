"""The penalty that keeps a new block's keys orthogonal to the old ones: by hand, and what it does to a learner."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

import rankwise
from rankwise.adapters import Change, banks_of, grow, using
from rankwise.api import adapt
from rankwise.claims.toys.stand import stand
from rankwise.config import parse_record
from rankwise.errors import ConflictError, UsageError
from rankwise.learning.step import EMPTY
from rankwise.strategies import Host, Term
from rankwise.strategies.orthogonal import Orthogonal, OrthogonalSettings, overlap, size

RANK = 3
SMALL = {
    "stream": {"name": "digits", "classes_per_task": 4, "train_limit": 24, "test_limit": 20},
    "train": {"steps": 3, "batch_size": 8, "device": "cpu"},
}


def grown(tasks: int) -> nn.Module:
    """Return two sites with `tasks` blocks whose factors are all set, the last of them live."""
    torch.manual_seed(0)
    model = adapt(nn.Sequential(nn.Linear(8, 9), nn.Linear(9, 5)), "lora-append", rank=RANK)
    for task in range(1, tasks):
        fill(model)
        grow(model, [Change("freeze"), Change("append", f"task {task}", RANK)], 0)
    fill(model)
    return model


def fill(model: nn.Module) -> None:
    for _, bank in banks_of(model).values():
        for tensor in bank.live.values():
            nn.init.normal_(tensor)


def terms(model: nn.Module, task: int, **settings: Any) -> dict[str, Term]:
    host = stand(model, 20)
    host.index = task
    part = Orthogonal(parse_record(OrthogonalSettings, settings, "test"), 0)
    part.begin_task(cast(Host, host), host.task)
    return {term.name: term for term in part.terms(cast(Host, host), 0)}


def value(term: Term) -> Tensor:
    return term.losses(EMPTY)


def test_the_penalty_is_the_sum_of_absolute_products_of_old_and_new_keys():
    model = grown(3)
    expected = 0.0
    for _, bank in banks_of(model).values():
        for old in bank.frozen.tensors()["A"]:
            for new in bank.live["A"]:
                expected += float((old * new).sum().abs().detach())
    assert float(overlap(model)) == pytest.approx(expected, rel=1e-5)


def test_only_the_new_keys_get_its_gradient():
    model = grown(2)
    overlap(model).backward()
    for _, bank in banks_of(model).values():
        assert bank.live["B"].grad is None and not bank.frozen.tensors()["A"].requires_grad
        torch.testing.assert_close(
            bank.live["A"].grad, torch.sign(bank.live["A"] @ bank.frozen.tensors()["A"].T) @ bank.frozen.tensors()["A"]
        )


def test_keys_that_are_orthogonal_cost_nothing():
    model = grown(2)
    (_, bank), *_ = banks_of(model).values()
    with torch.no_grad():
        old = torch.linalg.qr(bank.frozen.tensors()["A"].T).Q
        bank.live["A"].sub_(bank.live["A"] @ old @ old.T)
    (_, other) = list(banks_of(model).values())[1]
    with torch.no_grad():
        other.live["A"].zero_()
    assert float(overlap(model)) < 1e-4


def test_the_first_task_has_nothing_to_be_orthogonal_to():
    assert float(value(terms(grown(1), 0)["orthogonal"])) == 0.0


def test_weights_follow_the_tasks_and_the_last_holds_on():
    model = grown(2)
    found = [terms(model, task, lambda1=[0.5, 0.5, 5.0], lambda2=[0.0, 0.1]) for task in (1, 2, 9)]
    assert [each["orthogonal"].weight for each in found] == [0.5, 5.0, 5.0]
    assert [each["size"].weight for each in found] == [0.1, 0.1, 0.1]
    assert list(terms(model, 0, lambda1=[0.0])) == []


def test_the_size_is_the_sum_of_the_norms_of_the_new_factors():
    model = grown(2)
    live = [t for _, bank in banks_of(model).values() for t in (bank.live["A"], bank.live["B"])]
    assert float(size(model)) == pytest.approx(sum(float(t.square().sum()) ** 0.5 for t in live), rel=1e-5)


def test_it_turns_new_keys_away_from_old_ones():
    model = grown(2)
    before, rule = float(overlap(model)), torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 1e-2)
    for _ in range(100):
        rule.zero_grad()
        overlap(model).backward()
        rule.step()
    assert float(overlap(model)) < 0.2 * before


@pytest.mark.parametrize("settings", [{"lambda1": []}, {"lambda1": [-1.0]}, {"lambda1": 0.5}])
def test_weights_that_make_no_sense_are_refused(settings):
    with pytest.raises(UsageError, match="lambda1"):
        parse_record(OrthogonalSettings, settings, "strategy 'orthogonal'")


def test_a_method_that_keeps_no_old_blocks_is_refused_by_name(tmp_path):
    config = {**SMALL, "method": "lora", "strategy": [{"kind": "orthogonal"}]}
    with pytest.raises(ConflictError, match="'orthogonal'.*'keep'.*adapter.growth = 'append'"):
        rankwise.run(config, out=tmp_path / "run")


def test_it_composes_with_another_method_that_appends(tmp_path):
    config = {**SMALL, "method": "mora", "strategy": [{"kind": "orthogonal"}, {"kind": "replay"}]}
    run = rankwise.run(config, out=tmp_path / "run")
    assert run.results["steps"] == 9
    with using(run.model):
        assert all(len(bank.blocks) == 3 for _, bank in banks_of(run.model).values())
