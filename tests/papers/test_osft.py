"""OSFT: what the weak directions learn never reaches the strong ones, and one dense weight is left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from digit_runs import SMALL, read_json, snapshots, stored
from pools import randn
from torch import Tensor, nn

import rankwise
from rankwise.adapters import Bank, adapter_of, attach, banks_of, bare, pick_sites, read_weight
from rankwise.api import adapt, branch_of, resolve
from rankwise.claims.toys.stand import Stand, stand
from rankwise.config import AdapterSettings, merged, parse_record
from rankwise.errors import ConflictError, UsageError
from rankwise.papers.osft import METHOD, Osft, OsftSettings

WIDTH, OUT, KEPT = 24, 32, 12
TASKS = 3


class Toy(nn.Sequential):
    """One map [32, 24] and one [10, 32], so that both a tall and a wide weight is split."""

    def __init__(self) -> None:
        torch.manual_seed(3)
        super().__init__(nn.Linear(WIDTH, OUT), nn.ReLU(), nn.Linear(OUT, 10))


def started(form: dict[str, Any] | None = None, **train: Any) -> Stand:
    model = Toy()
    attach(model, pick_sites(model), branch_of(METHOD, AdapterSettings(form=form or {})), {"method": "osft"})
    return stand(model, TASKS, **{"steps": 50, "lr": 1e-2, "schedule": "constant", **train})


def part(**settings: Any) -> Osft:
    return Osft(parse_record(OsftSettings, {"frozen_ratio": 0.5, **settings}, "test"), 0)


def loss(host: Stand, step: int) -> Tensor:
    x, target = randn(16, WIDTH, key=f"x{step}"), randn(16, 10, key=f"y{step}")
    return (host.model(x) - target).square().mean()


def weights(host: Stand) -> dict[str, Tensor]:
    """Return the weight of each site as it acts: the base's, and what the block adds."""
    found = {}
    for name, (site, bank) in banks_of(host.model).items():
        weight = read_weight(host.model.get_submodule(site.path).base, site)  # pyright: ignore[reportArgumentType]
        branch = adapter_of(host.model).branch
        found[name] = weight + (branch.dense(bank.view(), site, lambda w=weight: w) if bank.blocks else 0)
    return found


def bases(host: Stand) -> list[Tensor]:
    """Return copies of the base's two weights."""
    return [host.model.get_parameter(f"{i}.base.weight").detach().clone() for i in (0, 2)]


def high(bank: Bank) -> tuple[Tensor, Tensor]:
    return bank.fixed.tensors()["U_h"][0], bank.fixed.tensors()["V_h"][0]


def leaks(host: Stand, before: dict[str, Tensor]) -> list[float]:
    """Return the share of each update that reaches V_h, and that lies along U_h."""
    found = []
    for name, (_, bank) in banks_of(host.model).items():
        (u, v), moved = high(bank), weights(host)[name] - before[name]
        found += [float((moved @ v.T).norm() / moved.norm()), float((u.T @ moved).norm() / moved.norm())]
    return found


def run(host: Stand, dynamics: Osft, steps: int, task: int = 0) -> None:
    host.begin(task, dynamics)
    for step in range(steps):
        host.step(dynamics, loss(host, step))


# the split


def test_the_split_model_computes_what_the_base_did():
    host, x = started(), randn(9, WIDTH, key="x")
    before = host.model(x).detach()
    host.begin(0, part())
    torch.testing.assert_close(host.model(x), before, rtol=0, atol=1e-5)
    assert [block.size for _, bank in banks_of(host.model).values() for block in bank.blocks] == [12, 5]


def test_the_base_keeps_the_strong_directions_and_the_block_the_weak_ones():
    host = started()
    weight = host.model.get_parameter("0.base.weight").detach().clone()
    host.begin(0, part())
    u, s, vh = torch.linalg.svd(weight, full_matrices=False)
    (_, bank), *_ = banks_of(host.model).values()
    torch.testing.assert_close(
        host.model.get_parameter("0.base.weight"), u[:, :KEPT] * s[:KEPT] @ vh[:KEPT], rtol=0, atol=1e-5
    )
    torch.testing.assert_close(bank.live["w"], s[KEPT:], rtol=1e-5, atol=1e-5)
    low = bank.live["B"] * bank.live["w"] @ bank.live["A"]
    torch.testing.assert_close(low, u[:, KEPT:] * s[KEPT:] @ vh[KEPT:], rtol=0, atol=1e-5)


def test_the_block_learns_its_number_of_parameters_and_the_rest_is_fixed():
    host = started()
    host.begin(0, part())
    learning = sum(p.numel() for p in host.model.parameters() if p.requires_grad)
    assert learning == (OUT + WIDTH + 1) * 12 + (10 + OUT + 1) * 5


def test_all_three_factors_get_gradient_and_move_at_the_first_step():
    host, dynamics = started(), part()
    host.begin(0, dynamics)
    before = {name: p.detach().clone() for name, p in host.live().items()}
    host.step(dynamics, loss(host, 0))
    for name, parameter in host.live().items():
        assert parameter.grad is not None and parameter.grad.norm() > 0, name
        assert not torch.equal(parameter, before[name]), name


# the constraint


def test_after_50_adamw_steps_nothing_has_leaked_into_the_protected_subspaces():
    host, dynamics = started(), part()
    before = weights(host)
    run(host, dynamics, 50)
    assert max(leaks(host, before)) <= 1e-5
    moved = [(weights(host)[name] - before[name]).norm() / before[name].norm() for name in before]
    assert min(moved) > 0.05


def test_after_every_step_the_factors_are_orthogonal_to_the_kept_ones_which_keep_their_bits():
    host, dynamics = started(), part()
    host.begin(0, dynamics)
    kept = {name: [t.clone() for t in high(bank)] for name, (_, bank) in banks_of(host.model).items()}
    base = bases(host)
    for step in range(20):
        host.step(dynamics, loss(host, step))
        for name, (_, bank) in banks_of(host.model).items():
            u, v = high(bank)
            assert (u.T @ bank.live["B"]).norm() < 1e-6 * bank.live["B"].norm()
            assert (bank.live["A"] @ v.T).norm() < 1e-6 * bank.live["A"].norm()
            assert torch.equal(u, kept[name][0]) and torch.equal(v, kept[name][1])
    assert all(torch.equal(now, then) for now, then in zip(bases(host), base, strict=True))


def test_protected_inputs_get_the_same_answer_as_before():
    host, dynamics = started(), part()
    before = weights(host)
    run(host, dynamics, 50)
    (name, (_, bank)), *_ = banks_of(host.model).items()
    x = randn(5, KEPT, key="c") @ high(bank)[1]
    torch.testing.assert_close(x @ weights(host)[name].T, x @ before[name].T, rtol=0, atol=1e-5)
    other = randn(5, WIDTH, key="o")
    assert not torch.allclose(other @ weights(host)[name].T, other @ before[name].T, atol=1e-2)


def test_without_the_projection_of_the_values_adamw_leaks():
    host, dynamics = started(), part(project_parameters=False)
    run(host, dynamics, 200)
    (_, bank), *_ = banks_of(host.model).values()
    assert (high(bank)[0].T @ bank.live["B"]).norm() > 0.05 * bank.live["B"].norm()


def test_without_the_projection_of_the_gradients_the_values_are_still_held():
    host, dynamics = started(), part(project_gradients=False)
    before = weights(host)
    run(host, dynamics, 50)
    assert max(leaks(host, before)) <= 1e-5


def test_the_gradient_is_projected_before_the_rule_sees_it():
    host, dynamics = started(), part()
    host.begin(0, dynamics)
    loss(host, 0).backward()
    (_, bank), *_ = banks_of(host.model).values()
    whole = {name: bank.live[name].grad.clone() for name in bank.live}
    dynamics.shape(host, 0)  # pyright: ignore[reportArgumentType]
    u, v = high(bank)
    torch.testing.assert_close(bank.live["B"].grad, whole["B"] - u @ (u.T @ whole["B"]))
    torch.testing.assert_close(bank.live["A"].grad, whole["A"] - whole["A"] @ v.T @ v)
    assert torch.equal(bank.live["w"].grad, whole["w"])


def test_the_papers_formula_protects_only_the_core():
    host, dynamics = started({"mode": "core"}), part()
    before = weights(host)
    run(host, dynamics, 50)
    (name, (_, bank)), *_ = banks_of(host.model).items()
    (u, v), moved = high(bank), weights(host)[name] - before[name]
    assert (u.T @ moved @ v.T).norm() < 1e-5 * moved.norm()
    assert leaks(host, before)[0] > 0.3 and leaks(host, before)[1] > 0.3
    assert set(bank.live) == {"D"} and bank.live["D"].shape == (1, OUT, WIDTH)


def test_the_core_formula_leaves_both_cross_blocks_of_a_random_gradient():
    host, dynamics = started({"mode": "core"}), part()
    host.begin(0, dynamics)
    (_, bank), *_ = banks_of(host.model).values()
    gradient = randn(1, OUT, WIDTH, key="G")
    bank.live["D"].grad = gradient.clone()
    dynamics.shape(host, 0)  # pyright: ignore[reportArgumentType]
    left = bank.live["D"].grad[0]
    assert 0.5 < float((left @ high(bank)[1].T).norm() / left.norm()) < 0.7  # 0.60 in the notes on the method


# the end of a task


@pytest.mark.parametrize("mode", ["factored", "core"])
def test_the_end_of_a_task_leaves_one_dense_weight_that_computes_the_same(mode):
    host, dynamics, x = started({"mode": mode}), part(), randn(9, WIDTH, key="x")
    plain = Toy().state_dict()
    run(host, dynamics, 10)
    before = host.model(x).detach()
    host.end(dynamics)
    torch.testing.assert_close(host.model(x), before, rtol=0, atol=1e-5)
    with bare(host.model) as base:
        state = base.state_dict()
    assert {n: t.shape for n, t in state.items()} == {n: t.shape for n, t in plain.items()}
    assert not torch.allclose(state["0.weight"], plain["0.weight"], atol=1e-3)


def test_the_next_task_splits_the_trained_weights():
    host, dynamics = started(), part()
    sizes = []
    for task in range(TASKS):
        before = weights(host)
        run(host, dynamics, 10, task)
        after = weights(host)
        host.end(dynamics)
        assert all(torch.allclose(weights(host)[n], after[n], atol=1e-5) for n in after)
        assert all(not torch.allclose(before[n], after[n], atol=1e-3) for n in after)
        held = sum(t.numel() for m in host.model.modules() for _, e in vars(m).get("edits", []) for t in e.values())
        sizes.append((sum(t.numel() for t in host.model.state_dict().values()), held))
    assert sizes == [(sum(p.numel() for p in Toy().parameters()), OUT * WIDTH + 10 * OUT)] * TASKS


# how much is frozen


def test_a_ratio_of_none_trains_everything_and_one_of_all_leaves_one_direction():
    for ratio, sizes in ((0.0, [24, 10]), (1.0, [1, 1])):
        host = started()
        host.begin(0, part(frozen_ratio=ratio))
        assert [bank.size for _, bank in banks_of(host.model).values()] == sizes


def test_without_frozen_directions_the_update_is_not_constrained():
    host, dynamics = started(), part(frozen_ratio=0.0)
    before = weights(host)
    run(host, dynamics, 20)
    moved = weights(host)["0"] - before["0"]
    assert torch.linalg.matrix_rank(moved, rtol=1e-3) > KEPT


@pytest.mark.parametrize(("step", "shares"), [(None, [0, 1 / 3, 2 / 3]), (0.5, [0, 0.5, 1])])
def test_a_schedule_freezes_more_with_every_task(step, shares):
    host, dynamics = started(), part(frozen="schedule", frozen_step=step)
    found = [dynamics.frozen(host, task)["0"] for task in host.tasks]  # pyright: ignore[reportArgumentType]
    assert found == pytest.approx(shares)


def test_importance_decides_by_site_and_only_from_the_second_task_on(monkeypatch):
    host, dynamics = started(), part(frozen="importance")
    monkeypatch.setattr("rankwise.strategies.alignment.importance", lambda *_: {"0": 0.5, "2": 3.0})
    first, second = (dynamics.frozen(host, task) for task in host.tasks[:2])  # pyright: ignore[reportArgumentType]
    assert first == pytest.approx({"0": 0.8, "2": 0.8})
    assert second == pytest.approx({"0": 0.1 + 0.5 * 0.7, "2": 1.0})


# refusals


def test_it_refuses_embeddings_and_convolutions_by_name():
    model = nn.Sequential(nn.Embedding(9, 6), nn.Linear(6, 4))
    with pytest.raises(UsageError, match=r"'0' is of kind 'embedding'.*'osft'.*exclude"):
        adapt(model, "osft", sites=["0", "1"])


def test_its_dynamics_refuse_another_branch():
    config = merged(SMALL, {"method": "lora", "adapter": {"dynamics": {"kind": "osft"}}})
    with pytest.raises(ConflictError, match="osft"):
        rankwise.run(config, out="never")
    assert not Path("never/config.toml").exists()


def test_more_ranks_than_a_weight_has_are_refused():
    with pytest.raises(UsageError, match=r"'0': 9 ranks to learn, its weight has 6; lower the rank"):
        adapt(nn.Sequential(nn.Linear(6, 7)), "osft", rank=9)


# runs


def test_a_run_leaves_dense_weights_and_no_blocks(digits):
    run = digits("osft")
    assert {name.split("/")[0] for name in stored(run.path, "adapter.safetensors")} == {""}
    sites = [site for site, bank in banks_of(run.model).values() if bank.size == 0]
    low = sum((site.n_in + site.n_out + 1) * (min(site.n_in, site.n_out) // 4) for site in sites)
    assert run.results["trainable_parameters"] == low + 2 * 128  # while the last task's block was there
    assert lower(read_json(run.path, "results.json")["matrix"])


def test_the_state_does_not_grow_with_the_tasks(digits):
    states = snapshots(digits("osft").path)
    sizes = [sum(t.numel() for n, t in state.items() if n.startswith("edits/")) for state in states]
    assert sizes[0] < sizes[1] == sizes[2]  # the first task's edits have fewer ranks than the weights


def test_importance_is_measured_on_the_previous_task(digits):
    run = digits("osft", adapter={"dynamics": {"frozen": "importance", "examples": 16}})
    assert lower(read_json(run.path, "results.json")["matrix"])


def test_the_cache_is_used_again_and_changes_nothing(tmp_path, monkeypatch):
    cache = {"adapter": {"form": {"cache": str(tmp_path / "svd")}}}
    config, _ = resolve(merged(SMALL, {"method": "osft", "train": {"steps": 1}, "stream": {"first_tasks": 1}, **cache}))
    first = rankwise.run(config.model_dump(exclude_none=True), out=tmp_path / "a")
    files = sorted((tmp_path / "svd").iterdir())
    assert len(files) == len(banks_of(first.model))
    monkeypatch.setattr(torch.linalg, "svd", None)
    second = rankwise.run(config.model_dump(exclude_none=True), out=tmp_path / "b")
    assert first.results["matrix"] == second.results["matrix"]
    one, two = stored(first.path, "adapter.safetensors"), stored(second.path, "adapter.safetensors")
    assert all(torch.equal(one[name], two[name]) for name in one)


def lower(matrix: list[list[float | None]]) -> bool:
    return all((cell is None) == (j > t) for t, row in enumerate(matrix) for j, cell in enumerate(row))
