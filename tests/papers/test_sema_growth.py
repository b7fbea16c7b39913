"""SEMA's growth: what surprises a descriptor, the scan, and the phases; on tensors and on a toy of domains."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import domains
import pytest
import torch
from safetensors.torch import load_file
from span_models import form_of, randn, vit
from torch import Tensor

from rankwise.adapters import banks_of
from rankwise.learning.learner import Learner
from rankwise.papers.sema.branch import DESCRIPTOR
from rankwise.papers.sema.descriptors import DESCRIBE
from rankwise.papers.sema.expansion import ADAPT, ANSWER, Expansion
from rankwise.papers.sema.surprise import Records, shallowest

# The dynamics, on plain tensors.


def surprise(errors: Tensor) -> Tensor:
    """Return the z-scores of fresh inputs for one descriptor with these recorded errors."""
    model, records = vit(), Records()
    (name, (_, bank)) = list(banks_of(model).items())[-1]
    records.errors[f"{name}/1"] = errors
    with torch.no_grad():
        return records.surprise(form_of(model), name, bank, randn(400, 16, key="fresh"))[:, 0]


def errors_of(key: str) -> Tensor:
    model = vit()
    _, bank = list(banks_of(model).values())[-1]
    with torch.no_grad():
        return form_of(model).errors(bank.view(), randn(500, 16, key=key))[:, 0]


def test_the_same_distribution_has_a_mean_score_of_about_four_fifths():
    assert 0.6 < float(surprise(errors_of("same")).mean()) < 1.0


def test_too_few_records_judge_nothing_and_a_perfect_fit_has_a_floor():
    assert not surprise(errors_of("same")[:2]).any() and surprise(errors_of("same")[:3]).any()
    flat = surprise(torch.full((500,), 0.5))
    assert flat.isfinite().all() and flat.min() > 1e3


def test_the_first_batch_that_surprises_every_descriptor_of_a_site_decides():
    z = {"near": torch.zeros(10, 2), "far": torch.zeros(10, 1)}
    assert shallowest(z, 4, 0, 2.0) == (None, 0)
    z["far"][4:] = 3.0  # two batches, of 4 and of 6 rows
    assert shallowest(z, 4, 0, 2.0) == ("far", 2) and shallowest(z, 4, 2, 2.0) == ("far", 2)
    z["near"][:4, 0] = 3.0  # one of its two descriptors knows the first batch
    assert shallowest(z, 4, 0, 2.0) == ("far", 2)
    z["near"][:4, 1] = 3.0
    assert shallowest(z, 4, 0, 2.0) == ("near", 1) and shallowest(z, 100, 0, 1.1) == ("near", 1)


# Runs on the toy of domains.

DYNAMICS = {"threshold": 12.0, "scan_batch": 64, "descriptor_share": 3.0, "descriptor_lr": 0.03}
ADAPTER = {"rank": 4, "form": {"expandable": 2, "latent": 4}, "dynamics": DYNAMICS}
SPANS = [f"layers.{i}.mlp.fc2.span" for i in range(3)]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return domains.base(tmp_path_factory.mktemp("base") / "vit")


@pytest.fixture(scope="module")
def learnt(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Learner, Path, list[tuple[str, str | None]]]:
    """Learn A, B and A' (new classes on the domain of A); return the phases too, each with the site it added."""
    out, phases = tmp_path_factory.mktemp("run") / "run", []
    made = domains.learner(
        base, "sema", domains.stream(("A", "B", "A'")), adapter=ADAPTER, train={"batch_size": 16, "lr": 1e-2}
    )
    enter = made.enter_phase

    def noted(phase: Any) -> None:
        phases.append((phase.name, phase.changes[-1].site if phase.changes else None))
        enter(phase)

    made.enter_phase = noted  # pyright: ignore[reportAttributeAccessIssue]
    domains.learn(made, out)
    return made, out, phases


def test_new_adapters_come_where_the_domain_is_new_and_nowhere_else(learnt):
    made, _, phases = learnt
    labels = {name: bank.labels for name, (_, bank) in banks_of(made.model).items()}
    assert labels == {SPANS[0]: ("A",), SPANS[1]: ("A", "B"), SPANS[2]: ("A", "B")}
    added = [(ADAPT, site) for site in SPANS[1:]]  # the shallower of two surprised blocks first
    described = [(DESCRIBE, None)]
    assert phases == [(ADAPT, None), *described, added[0], *described, added[1], *described, (ANSWER, None)]


def test_what_was_learnt_before_stays_to_the_bit(learnt):
    _, out, _ = learnt
    first, second, third = domains.task_ends(out)
    assert not any("/live." in name for name in first if name.startswith("sites/"))
    for name in (name for name in first if name.startswith("sites/")):
        bank = SPANS.index(name.split("/")[1])
        dim = {"up": 1}.get(name.rpartition(".")[2], 0)
        now = second[name].narrow(dim, 0, first[name].shape[dim])
        assert torch.equal(now, first[name]), name
        assert (second[name].shape[dim] > first[name].shape[dim]) is (bank > 0)
    held = [name for name in second if name.startswith(("sites/", "strategies/"))]
    changed = {name for name in held if not torch.equal(third[name], second[name])}
    assert changed <= {"strategies/sema/place"}  # a task without expansion changes the head alone
    assert any(name.startswith("head/") and third[name].shape != second[name].shape for name in third)
    for name in (name for name in first if name.startswith("strategies/sema/layers")):
        assert torch.equal(second[name], first[name]) and torch.equal(third[name], first[name])


def test_old_class_rows_do_not_move(learnt):
    _, out, _ = learnt
    first, _, third = domains.task_ends(out)
    rows = torch.cat([first[f"head/{half}.weight"] for half in ("frozen", "live") if f"head/{half}.weight" in first])
    assert torch.equal(third["head/frozen.weight"][: len(rows)], rows)


def test_records_hold_the_last_errors_of_training(learnt):
    made, _, _ = learnt
    part = part_of(made)
    assert set(part.records.errors) == {f"{site}/{label}" for site in SPANS[1:] for label in ("A", "B")}
    assert all(errors.shape == (500,) and errors.isfinite().all() for errors in part.records.errors.values())


def test_a_scan_changes_nothing_and_uses_no_labels(learnt):
    made, _, _ = learnt
    task = domains.task(3, "D", {"train": 40, "validation": 4, "test": 4}, 0)
    part, before = part_of(made), made.state()[0]
    part.place = 0
    site = part.scan(made, task)
    wrong = replace(task, train=replace(task.train, labels=task.train.labels.flip(0)))
    part.place = 0
    assert part.scan(made, wrong) == site == SPANS[1]
    after = made.state()[0]
    part.place = 0
    assert all(torch.equal(after[name], before[name]) for name in before if not name.endswith("/place"))


def test_a_higher_threshold_never_adds_more(learnt):
    made, _, _ = learnt
    part, before = part_of(made), part_of(made).settings
    fired = []
    for threshold in (1e-3, 2.0, 12.0, 1e6):
        part.settings = replace(before, threshold=threshold)
        part.place = 0
        fired.append([part.scan(made, replace(task, name="new")) is not None for task in made.tasks])
        part.place = 0
    part.settings = before
    assert fired[0] == [True] * 3 and fired[-1] == [False] * 3 and fired[2] == [False] * 3
    assert all(
        high <= low for one, two in zip(fired, fired[1:], strict=False) for low, high in zip(one, two, strict=True)
    )


def test_a_scan_goes_on_after_the_batch_that_fired_and_then_over_all_of_them(learnt, monkeypatch):
    made, _, _ = learnt
    part = part_of(made)
    task = domains.task(3, "D", {"train": 75, "validation": 4, "test": 4}, 0)  # 150 rows: two batches, 64 and 86
    rows = torch.zeros(150, 4)
    monkeypatch.setattr(part, "deviations", lambda host, batch, sites: rows[batch.ids])
    part.place = 0
    rows[64:, 2:] = 50.0  # the second batch, at the deeper site, for both of its descriptors
    assert part.scan(made, task) == SPANS[2] and part.place == 2
    rows[:] = 0
    rows[:64, :2] = 50.0  # now the first batch, met again in the next pass
    assert part.scan(made, task) == SPANS[1] and part.place == 1
    rows[:64, 0] = 0.0  # one descriptor knows it
    assert part.scan(made, task) is None
    part.place = 0


def part_of(made: Learner) -> Expansion:
    part = made.strategies[-1]
    assert isinstance(part, Expansion)
    return part


def short(base: Path, **tables: Any) -> Callable[[], Learner]:
    """Return what makes a learner whose every block expands in every task, of few steps."""
    adapter = {**ADAPTER, "dynamics": {**DYNAMICS, "threshold": 1e-9, "descriptor_share": 1.0}}
    train = {"steps": 3, "batch_size": 8, "snapshot_seconds": 0, "lr": 1e-2, **tables}
    return lambda: domains.learner(base, "sema", domains.stream(("A", "B"), train=16), adapter=adapter, train=train)


def test_each_block_expands_at_most_once_a_task(base, tmp_path):
    made = short(base)()
    domains.learn(made, tmp_path / "run")
    assert [bank.labels for _, bank in banks_of(made.model).values()] == [("A",), ("A", "B"), ("A", "B")]


def test_a_run_stopped_in_any_phase_ends_as_if_it_had_not_been(base, tmp_path):
    make = short(base, optimizer="sgd", momentum=0.9)
    whole = domains.learn(make(), tmp_path / "whole")
    parts, sittings = domains.in_sittings(make, tmp_path / "parts", 2)
    assert sittings > 6 and parts.rows == whole.rows and parts.validation == whole.validation
    for one, two in zip(domains.task_ends(tmp_path / "whole"), domains.task_ends(tmp_path / "parts"), strict=True):
        assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_records_do_not_depend_on_how_a_batch_is_cut(base, tmp_path):
    one, two = (short(base, accumulate=count)() for count in (1, 3))
    for name, made in (("one", one), ("two", two)):
        domains.learn(made, tmp_path / name)
    for key, errors in part_of(one).records.errors.items():
        torch.testing.assert_close(part_of(two).records.errors[key], errors, rtol=1e-3, atol=1e-5)


def test_phase_r_moves_descriptors_alone(base, tmp_path):
    made = short(base)()
    with pytest.raises(domains.Stop):
        domains.learn(made, tmp_path / "run", domains.Stopping(5))
    assert made.phase.name == DESCRIBE
    names = {name.rpartition(".")[2] for name in made.live()}
    assert names == set(DESCRIPTOR)
    assert all(group["peak"] == DYNAMICS["descriptor_lr"] for rule in made.optimizers for group in rule.param_groups)


def test_a_run_saves_its_adapter(digits):
    run = digits("sema", adapter={"rank": 2, "form": {"expandable": 1, "latent": 4}})
    held = load_file(str(run.path / "adapter" / "adapter.safetensors"))
    assert sum(name.endswith(".router") for name in held) == 1
    assert sum(name.endswith(".down") for name in held) == len(banks_of(run.model))
