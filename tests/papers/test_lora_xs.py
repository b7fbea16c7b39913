"""LoRA-XS: two fixed factors from the weight, and a core that alone learns and spans the update."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pools import randn
from torch import Tensor, nn

from rankwise.adapters import Change, adapter_of, banks_of, bare, grow, read_weight
from rankwise.api import adapt, merge
from rankwise.errors import UsageError
from rankwise.models import fingerprint

WIDTH, OUT, RANK = 20, 14, 4


def model() -> nn.Sequential:
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(WIDTH, OUT), nn.Tanh(), nn.Linear(OUT, 6))


def trained(steps: int = 20, **settings: Any) -> nn.Module:
    adapted = adapt(model(), "lora-xs", rank=RANK, **settings)
    rule = torch.optim.Adam([p for p in adapted.parameters() if p.requires_grad], 1e-1)
    for _ in range(steps):
        rule.zero_grad()
        (adapted(randn(8, WIDTH, key="x")) - 1).square().mean().backward()
        rule.step()
    return adapted


def updates(adapted: nn.Module) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Return (A, B, update) of each site."""
    branch, found = adapter_of(adapted).branch, []
    for site, bank in banks_of(adapted).values():
        blocks = bank.view()
        found.append((blocks["A"], blocks["B"], branch.dense(blocks, site, lambda: torch.empty(0))))
    return found


def test_the_fixed_factors_are_the_best_approximation_of_the_weight_and_the_base_stays():
    plain = model()
    adapted = adapt(plain, "lora-xs", rank=RANK)
    for site, bank in banks_of(adapted).values():
        weight = read_weight(adapted.get_submodule(f"{site.path}.base"), site)
        u, s, vh = torch.linalg.svd(weight, full_matrices=False)
        a, b = bank.view()["A"], bank.view()["B"]
        torch.testing.assert_close(b @ a, u[:, :RANK] * s[:RANK] @ vh[:RANK], rtol=0, atol=1e-5)
        torch.testing.assert_close(b.T @ b, torch.eye(RANK), rtol=0, atol=1e-5)
        torch.testing.assert_close(a @ a.T, torch.diag(s[:RANK].square()), rtol=1e-4, atol=1e-5)
    with bare(adapted) as base:
        assert fingerprint(base) == fingerprint(model())


def test_it_starts_next_to_the_base_or_exactly_there():
    x = randn(50, WIDTH, key="t")
    moved = (adapt(model(), "lora-xs", rank=RANK)(x) - model()(x)).norm() / model()(x).norm()
    assert 0 < float(moved) < 1e-3
    assert torch.equal(adapt(model(), "lora-xs", rank=RANK, gate={"sigma": 0.0})(x), model()(x))


def test_only_the_cores_learn():
    adapted = adapt(model(), "lora-xs", rank=RANK)
    learning = [p for p in adapted.parameters() if p.requires_grad]
    assert [tuple(p.shape) for p in learning] == [(1, RANK, RANK)] * 2
    before = [(a.clone(), b.clone()) for a, b, _ in updates(adapted)]
    after = updates(trained())
    assert all(torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d, _) in zip(before, after, strict=True))


def test_the_update_never_leaves_the_fixed_subspaces():
    for a, b, update in updates(trained()):
        v = torch.linalg.qr(a.T).Q
        assert update.norm() > 0.1
        assert (update - b @ (b.T @ update)).norm() < 1e-5 * update.norm()
        assert (update - update @ v @ v.T).norm() < 1e-5 * update.norm()


@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_the_gradient_of_a_core_is_that_of_the_weight_between_the_factors(scale):
    adapted, plain = trained(scale=scale), merge(trained(scale=scale))
    x, target = randn(8, WIDTH, key="g"), randn(8, 6, key="h")
    for net in (adapted, plain.requires_grad_(True)):
        net.zero_grad()
        (net(x) - target).square().mean().backward()
    for site, bank in banks_of(adapted).values():
        whole, core = plain.get_parameter(f"{site.path}.weight").grad, bank.live["R"].grad
        expected = scale * bank.view()["B"].T @ whole @ bank.view()["A"].T
        torch.testing.assert_close(core[0], expected, rtol=1e-3, atol=1e-6)


def test_each_of_two_blocks_has_its_own_core():
    adapted, x = trained(), randn(9, WIDTH, key="t")
    before = adapted(x)
    grow(adapted, [Change("freeze"), Change("append", "2", RANK)], 0)
    torch.testing.assert_close(adapted(x), before, rtol=0, atol=1e-3)
    (_, bank), *_ = banks_of(adapted).values()
    with torch.no_grad():
        bank.live["R"].normal_()
    after = adapted(x)
    torch.testing.assert_close(merge(adapted)(x), after, rtol=1e-4, atol=1e-4)


def test_more_ranks_than_singular_values_are_refused():
    with pytest.raises(UsageError, match=r"'0': rank 15 of a weight with 14 singular values"):
        adapt(model(), "lora-xs", rank=15)
