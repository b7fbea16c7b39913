"""DyLoRA: prefixes act and learn as they should, and what a step must leave alone keeps its bits."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from digit_runs import snapshots
from torch import Tensor, nn

import rankwise
from rankwise.adapters import Change, banks_of, grow, using
from rankwise.adapters.nested import PREFIX
from rankwise.api import adapt, export, load, merge, save
from rankwise.errors import ConflictError
from rankwise.papers.dylora import NestedRanks, Settings
from rankwise.seeds import generator

IN, OUT, RANK, SCALE = 10, 7, 4, 1.5


def draw(*size: int, key: str = "") -> Tensor:
    return torch.randn(*size, generator=generator(0, "draw", key, *size))


def model_of(method: str = "dylora", b: Tensor | None = None) -> nn.Module:
    torch.manual_seed(0)
    model = adapt(nn.Sequential(nn.Linear(IN, OUT)), method, rank=RANK, scale=SCALE)
    ((_, bank),) = banks_of(model).values()
    with torch.no_grad():
        bank.live["B"].copy_(draw(OUT, RANK) if b is None else b)
    return model


def factors(model: nn.Module) -> tuple[Tensor, Tensor]:
    ((_, bank),) = banks_of(model).values()
    return bank.live["A"], bank.live["B"]


def at(b: int) -> dict[str, Any]:
    return {"draws": {PREFIX: torch.tensor(b)}}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("b", range(1, RANK + 1))
def test_a_prefix_is_a_lora_of_its_own_rank_and_alpha(b, training):
    model, x = model_of().train(training), draw(5, IN)
    a, up = factors(model)
    with using(model, **at(b)):
        found = model(x)
    alpha = SCALE * RANK
    torch.testing.assert_close(found - model[0].base(x), alpha / b * x @ a[:b].T @ up[:, :b].T, rtol=1e-5, atol=1e-5)  # pyright: ignore[reportIndexIssue, reportCallIssue]


@pytest.mark.parametrize("b", range(1, RANK + 1))
def test_a_fresh_adapter_is_silent_at_every_prefix(b):
    model, x = model_of(b=torch.zeros(OUT, RANK)), draw(5, IN)
    with using(model, **at(b)):
        assert torch.equal(model(x), model[0].base(x))  # pyright: ignore[reportIndexIssue, reportCallIssue]


@pytest.mark.parametrize("context", [{}, at(RANK)], ids=["undrawn", "whole"])
def test_the_whole_block_is_lora_in_outputs_and_gradients(context):
    found = []
    for method, values in (("dylora", context), ("lora", {})):
        model = model_of(method)
        with using(model, **values):
            y = model(draw(5, IN))
            found.append((y.detach(), *torch.autograd.grad(y.square().sum(), factors(model))))
    for ours, plain in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("b", range(1, RANK))
def test_ranks_beyond_the_prefix_have_a_gradient_of_zero(b):
    model = model_of()
    with using(model, **at(b)):
        down, up = torch.autograd.grad(model(draw(5, IN)).square().sum(), factors(model))
    assert not down[b:].any() and not up[:, b:].any()
    assert (down[:b].norm(dim=1) > 0).all() and (up[:, :b].norm(dim=0) > 0).all()


def test_the_first_gradient_is_that_of_the_scaled_prefix():
    model, x, target = model_of(b=torch.zeros(OUT, RANK)), draw(5, IN), draw(5, OUT)
    a, _ = factors(model)
    with using(model, **at(2)):
        y = model(x)
        down, up = torch.autograd.grad((y - target).square().sum(), factors(model))
    g = (2 * (y - target)).T @ x
    assert not down.any()
    torch.testing.assert_close(up[:, :2], SCALE * RANK / 2 * g @ a[:2].T)


def test_drawn_ranks_cover_the_block_with_the_frequencies_of_their_law():
    def counts(**settings: Any) -> Counter[int]:
        part = NestedRanks(Settings(**settings), 3)
        return Counter(part.drawn(8, step) for step in range(8000))

    uniform = counts()
    chi = sum((uniform[b] - 1000) ** 2 / 1000 for b in range(1, 9))
    assert set(uniform) == set(range(1, 9)) and chi < 24.3  # 0.1 % of 7 degrees of freedom
    geometric = counts(law="geometric", success=0.3)
    weights = [0.3 * 0.7**i for i in range(8)]
    expected = {b: 8000 * w / sum(weights) for b, w in enumerate(weights, 1)}
    assert sum((geometric[b] - n) ** 2 / n for b, n in expected.items()) < 24.3
    assert set(counts(smallest=3)) == set(range(3, 9))
    assert NestedRanks(Settings(smallest=5), 0).drawn(2, 0) == 2


@pytest.fixture
def seen(monkeypatch) -> list[tuple[int, dict[str, Tensor], dict[str, Tensor]]]:
    """Of each step of a run: its number, and the live factors before and after it."""
    from rankwise.learning import run

    found: list[tuple[int, dict[str, Tensor], dict[str, Tensor]]] = []
    step = run.step

    def watched(learner, terms, number, rate):
        def values():
            return {n: p.detach().clone() for n, p in learner.live().items() if n.startswith("base.")}

        before = values()
        losses = step(learner, terms, number, rate)
        found.append((number, before, values()))
        return losses

    monkeypatch.setattr(run, "step", watched)
    return found


def moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> tuple[set[int], set[int]]:
    """Return the ranks that moved at some site, and those that moved at all sites, of the up factors."""
    ranks = [
        {r for r in range(after[name].shape[1]) if not torch.equal(after[name][:, r], before[name][:, r])}
        for name in after
        if name.endswith(".B")
    ]
    return set.union(*ranks), set.intersection(*ranks)


@pytest.mark.parametrize("updates", ["prefix", "newest"])
def test_a_step_moves_the_same_ranks_of_every_site_and_keeps_the_others_to_the_bit(digits, seen, updates):
    """Adam's momentum and weight decay move the others, were they not put back."""
    digits(
        "dylora",
        adapter={"dynamics": {"updates": updates}, "rank": 4},
        train={"weight_decay": 0.1, "steps": 8, "accumulate": 2},
        stream={"first_tasks": 1},
    )
    part = NestedRanks(Settings(updates=updates), 0)
    assert len(seen) == 8
    for number, before, after in seen[1:]:
        b = part.drawn(4, number)
        wanted = set(range(b)) if updates == "prefix" else {b - 1}
        assert moved(before, after) == (wanted, wanted), number


def test_without_strictness_momentum_and_decay_move_the_others(digits, seen):
    dynamics = {"updates": "newest", "strict": False}
    digits(
        "dylora",
        adapter={"dynamics": dynamics, "rank": 4},
        train={"weight_decay": 0.1, "steps": 8, "accumulate": 2},
        stream={"first_tasks": 1},
    )
    assert any(len(moved(before, after)[0]) > 1 for _, before, after in seen)


def test_moving_the_newest_rank_alone_leaves_smaller_prefixes_as_they_are():
    model, x = model_of(), draw(5, IN)
    part = NestedRanks(Settings(updates="newest"), 0)

    class Host:
        tasks = ()

    host: Any = Host()
    host.model = model
    step = next(n for n in range(99) if part.drawn(RANK, n) == 3)

    def at_all() -> list[Tensor]:
        with torch.no_grad():
            found = []
            for b in range(1, RANK + 1):
                with using(model, **at(b)):
                    found.append(model(x))
            return found

    before, rule = at_all(), torch.optim.SGD(model.parameters(), lr=0.1)
    with using(model, **part.context(host, Any, step)):  # pyright: ignore[reportArgumentType]
        model(x).square().sum().backward()
    part.shape(host, step)
    rule.step()
    part.settle(host, step)
    changed = [not torch.equal(one, other) for one, other in zip(before, at_all(), strict=True)]
    assert changed == [False, False, True, True]


def test_the_block_is_cut_to_its_prefix_after_the_last_task(digits):
    run = digits("dylora", adapter={"dynamics": {"keep": 3}}, stream={"first_tasks": 2})
    whole = digits("dylora", stream={"first_tasks": 2})
    (first, last), (_, uncut) = snapshots(run.path), snapshots(whole.path)
    for name in (name for name in last if name.startswith("sites/")):
        assert first[name].shape[name.endswith(".B")] == 8
        assert torch.equal(last[name], uncut[name][:3] if name.endswith(".A") else uncut[name][:, :3])


@pytest.mark.parametrize(("tolerance", "most"), [(1e9, 1), (0.0, 8)])
def test_the_smallest_prefix_within_the_tolerance_is_chosen_on_validation_rows(digits, tolerance, most):
    run = digits(
        "dylora",
        adapter={"dynamics": {"tolerance": tolerance}},
        stream={"first_tasks": 1, "validation": 0.25},
        train={"steps": 12},
    )
    sizes = {bank.size for _, bank in banks_of(run.model).values()}
    assert len(sizes) == 1 and sizes.pop() <= most


def test_a_cut_adapter_saves_merges_and_leaves_as_a_plain_lora_of_its_rank(tmp_path):
    model, x, b = model_of().eval(), draw(5, IN), 2
    with torch.no_grad(), using(model, **at(b)):
        wanted = model(x)
    grow(model, [Change("select", index=tuple(range(b)))], 0)
    torch.testing.assert_close(model(x), wanted)
    save(model, tmp_path / "saved")
    export(model, tmp_path / "peft")
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(IN, OUT))
    back = load(base, tmp_path / "saved")
    torch.testing.assert_close(back(x), wanted)
    torch.manual_seed(0)
    plain = load(nn.Sequential(nn.Linear(IN, OUT)), tmp_path / "peft")
    torch.testing.assert_close(plain(x), wanted, rtol=1e-5, atol=1e-5)
    assert {bank.size for _, bank in banks_of(plain).values()} == {b}
    torch.testing.assert_close(merge(model)(x), wanted, rtol=1e-5, atol=1e-5)


def test_a_method_without_prefixes_is_refused(tmp_path):
    adapter = {"dynamics": {"kind": "dylora"}}
    config = {"method": "lora", "model": {"name": "embedded:vit"}, "stream": {"name": "digits"}, "adapter": adapter}
    with pytest.raises(ConflictError, match="prefixes"):
        rankwise.run(config, out=tmp_path / "run")


@pytest.mark.slow
def test_truncated_it_keeps_more_than_a_truncated_lora():
    """Claim 1: eight classes by a map of rank 8 in 32 inputs; accuracy at prefixes of 2 and 4 ranks, two seeds."""
    gains: dict[int, list[float]] = {2: [], 4: []}
    for seed in (0, 1):
        lora, nested = accuracies("lora", seed), accuracies("dylora", seed)
        for b in gains:
            gains[b].append(nested[b] - lora[b])
    assert sum(gains[4]) / 2 >= 0.08 and sum(gains[2]) / 2 >= 0.04, gains


def accuracies(method: str, seed: int, steps: int = 500) -> dict[int, float]:
    """Return the test accuracy at each prefix of an adapter of rank 8 over a base of zeros."""
    truth = torch.randn(8, 32, generator=generator(seed, "truth"))
    base = nn.Sequential(nn.Linear(32, 8, bias=False))
    with torch.no_grad():
        base[0].weight.zero_()  # pyright: ignore[reportCallIssue]
    model = adapt(base, "dylora", rank=8, scale=2.0, seed=seed)
    part = NestedRanks(Settings(strict=False), seed)
    rule = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    for step in range(steps):
        x = torch.randn(64, 32, generator=generator(seed, "x", step))
        rule.zero_grad()
        with using(model, **at(part.drawn(8, step) if method == "dylora" else 8)):
            nn.functional.cross_entropy(model(x), (x @ truth.T).argmax(1)).backward()
        rule.step()
    x = torch.randn(4000, 32, generator=generator(seed, "test"))
    found = {}
    for b in range(1, 9):
        with torch.no_grad(), using(model, **at(b)):
            found[b] = float((model(x).argmax(1) == (x @ truth.T).argmax(1)).float().mean())
    return found
