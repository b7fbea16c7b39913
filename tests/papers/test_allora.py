"""ALLoRA: what the factor inside the backward does to A and B, and that it does nothing else."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rankwise.adapters import adapter_of, banks_of
from rankwise.api import adapt, merge
from rankwise.errors import UsageError
from rankwise.papers.allora import RowPaced, Up, row_norms
from rankwise.seeds import generator

IN, OUT, RANK, ETA = 7, 6, 3, 2.0


def draw(*size: int, key: str = "") -> Tensor:
    return torch.randn(*size, generator=generator(0, "draw", key, *size))


def model_of(method: str = "allora", *, b: Tensor | None = None, **form) -> nn.Module:
    torch.manual_seed(0)
    settings = {"form": {"eta": ETA, **form}} if method == "allora" else {}
    model = adapt(nn.Sequential(nn.Linear(IN, OUT)), method, rank=RANK, **settings)
    ((_, bank),) = banks_of(model).values()
    with torch.no_grad():
        bank.live["B"].copy_(draw(OUT, RANK) if b is None else b)
    return model


def gradients(model: nn.Module, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return (output, g_x, g_A, g_B)."""
    ((_, bank),) = banks_of(model).values()
    x = x.clone().requires_grad_()
    y = model(x)
    found = torch.autograd.grad((y - target).square().sum(), [x, bank.live["A"], bank.live["B"]])
    return y.detach(), *found


def full(model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
    """Return G = dL/d(B A) [out, in]."""
    with torch.no_grad():
        delta = 2 * (model(x) - target)
    return delta.flatten(0, -2).T @ x.flatten(0, -2)


@pytest.mark.parametrize("shape", [(5,), (2, 4), (2, 3, 4)], ids=str)
def test_forward_and_input_gradient_are_loras_and_the_factors_gradients_are_weighed(shape):
    x, target = draw(*shape, IN), draw(*shape, OUT, key="y")
    ours, plain = model_of(), model_of("lora")
    (y, g_x, g_a, g_b), (wanted, wanted_x, _, plain_b) = gradients(ours, x, target), gradients(plain, x, target)
    assert torch.equal(y, wanted)
    torch.testing.assert_close(g_x, wanted_x, rtol=1e-6, atol=1e-6)
    ((_, bank),) = banks_of(ours).values()
    a, b = bank.live["A"].detach(), bank.live["B"].detach()
    c = ((b @ a).norm(dim=1) + 1 / ETA**2) ** -0.5
    torch.testing.assert_close(g_b, c[:, None] * plain_b, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(g_a, b.T @ (c[:, None] * full(ours, x, target)), rtol=1e-5, atol=1e-5)


def test_at_zero_every_row_is_eta_times_faster():
    x, target, zero = draw(5, IN), draw(5, OUT, key="y"), torch.zeros(OUT, RANK)
    ours, plain = (gradients(model_of(method, b=zero), x, target) for method in ("allora", "lora"))
    assert torch.equal(ours[3], ETA * plain[3]) and not ours[2].any()


def test_the_factor_lies_between_0_and_eta_and_falls_with_the_norm():
    sizes = torch.tensor([0.0, 1e-12, 0.1, 1.0, 10.0, 1e8])
    c = RowPaced(eta=ETA).pace(sizes)
    assert c[0] == ETA and c.isfinite().all() and (c > 0).all() and (c.diff() <= 0).all()
    torch.testing.assert_close(c[-1], sizes[-1] ** -0.5)
    assert (RowPaced(eta=1.0).pace(sizes) <= 1).all()


def test_the_fast_row_norm_is_that_of_the_product():
    a, b = draw(RANK, IN), draw(OUT, RANK)
    torch.testing.assert_close(row_norms(a, b), (b @ a).norm(dim=1), rtol=1e-5, atol=1e-5)
    assert not row_norms(a, torch.zeros_like(b)).any()


def test_gradients_of_micro_batches_add_up():
    x, target = draw(6, IN), draw(6, OUT, key="y")
    model = model_of()
    whole, halves = gradients(model, x, target), [gradients(model, x[i : i + 3], target[i : i + 3]) for i in (0, 3)]
    for i in (2, 3):
        torch.testing.assert_close(whole[i], halves[0][i] + halves[1][i], rtol=1e-5, atol=1e-5)


def test_activation_checkpointing_changes_nothing():
    x = draw(5, IN).requires_grad_()
    model = model_of()
    ((_, bank),) = banks_of(model).values()
    seen = []
    for run in (model, lambda v: checkpoint(model, v, use_reentrant=False)):
        seen.append(torch.autograd.grad(run(x).square().sum(), [x, bank.live["A"], bank.live["B"]]))
    assert all(torch.equal(one, other) for one, other in zip(*seen, strict=True))


@pytest.mark.parametrize(("c", "passes"), [(1.0, True), (0.5, False)])
def test_it_is_no_true_gradient_unless_the_factor_is_1(c, passes):
    a = draw(RANK, IN).double().requires_grad_()
    b = draw(OUT, RANK).double().requires_grad_()
    x = draw(4, IN).double()

    def up(a: Tensor, b: Tensor) -> Tensor:
        z = x @ a.T
        return Up.apply(z.detach(), z, b, torch.full((OUT,), c).double())  # pyright: ignore[reportReturnType]

    assert torch.autograd.gradcheck(up, (a, b), raise_exception=False) is passes


def test_the_ablations_weigh_by_the_output():
    x, target = draw(5, IN), draw(5, OUT, key="y")
    ours, plain = model_of(factor="output"), model_of("lora")
    (y, _, _, g_b), (wanted, _, _, _) = gradients(ours, x, target), gradients(plain, x, target)
    assert torch.equal(y, wanted)
    ((_, bank),) = banks_of(ours).values()
    a, b = bank.live["A"].detach(), bank.live["B"].detach()
    z = x @ a.T
    c = ((z @ b.T).abs() + 1 / ETA**2) ** -0.5
    torch.testing.assert_close(g_b, (2 * (y - target) * c).T @ z, rtol=1e-5, atol=1e-5)
    scaled = model_of(factor="scaled")
    torch.testing.assert_close(scaled(x) - scaled[0].base(x), (z @ b.T) * c)  # pyright: ignore[reportIndexIssue, reportCallIssue]
    with pytest.raises(UsageError, match="depends on the input"):
        merge(scaled)


def test_a_scale_is_refused():
    with pytest.raises(UsageError, match="eta"):
        adapt(nn.Sequential(nn.Linear(IN, OUT)), "allora", scale=2.0)
    with pytest.raises(UsageError, match="eta"):
        adapt(nn.Sequential(nn.Linear(IN, OUT)), "allora", form={"eta": 0.0})


def test_it_escapes_from_zero_fast_and_then_tapers_off():
    """Claim 1 of the paper's note: linear regression by gradient descent, rows of very different size."""
    lengths = {eta: escape(eta) for eta in (None, 2.0, 1.0)}
    first = {eta: lengths[eta][0] / lengths[None][0] for eta in (2.0, 1.0)}
    assert first[2.0] == pytest.approx(2.0, rel=1e-2) and first[1.0] == pytest.approx(1.0, rel=1e-3)
    assert lengths[2.0][-1] / lengths[None][-1] < 1.1
    assert all(one / plain < 1 for one, plain in zip(lengths[1.0][5:60], lengths[None][5:60], strict=True))


def escape(eta: float | None, steps: int = 100) -> list[float]:
    """Return the mean row norm of B A after each step, for ALLoRA or (None) plain LoRA."""
    torch.manual_seed(0)
    form = {} if eta is None else {"form": {"eta": eta}}
    model = adapt(nn.Sequential(nn.Linear(24, 16, bias=False)), "lora" if eta is None else "allora", rank=4, **form)
    ((site, bank),) = banks_of(model).values()
    x, sizes = draw(256, 24), torch.logspace(-1, math.log10(2.0), 16)
    with torch.no_grad():
        target = model(x) + x @ (sizes[:, None] * draw(16, 4) @ draw(4, 24) / 24**0.5).T
    rule, seen = torch.optim.SGD([bank.live["A"], bank.live["B"]], lr=0.05), []
    for _ in range(steps):
        rule.zero_grad()
        ((model(x) - target).square().sum() / (2 * len(x))).backward()
        rule.step()
        update = adapter_of(model).branch.dense(bank.view(), site, lambda: torch.zeros(16, 24))
        seen.append(float(update.norm(dim=1).mean()))
    return seen
