"""What the dynamics over pairs of factors share: any method with pairs takes them, and no other does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from lab import begin, steps

import rankwise
from rankwise.adapters import Change, Pair, attach, banks_of, grow, pick_sites
from rankwise.errors import ConflictError

TWO = {"first_tasks": 2}
DYNAMICS = ("altlora", "altlora-plus", "riemannian", "lora-pro")


@pytest.mark.parametrize("kind", DYNAMICS)
def test_other_methods_take_the_rule_from_a_config(digits, kind):
    run = digits("lora-append", adapter={"dynamics": {"kind": kind}}, stream={"first_tasks": 2})
    for _, bank in banks_of(run.model).values():
        assert bank.tensor("B").isfinite().all() and bank.tensor("B").norm() > 0


@pytest.mark.parametrize("kind", DYNAMICS)
def test_it_refuses_what_has_no_pair_of_factors(kind, tmp_path):
    def started(**tables: Any) -> Callable[[], object]:
        config = {"model": {"name": "embedded:vit"}, "stream": {"name": "digits"}, **tables}
        return lambda: rankwise.run(config, out=tmp_path / "run")

    fixed = started(method="lora", adapter={"dynamics": {"kind": kind}, "form": {"fixed": ["A"]}})
    with pytest.raises(ConflictError, match=f"{kind!r} needs two factors.*fixed"):
        fixed()
    with pytest.raises(ConflictError, match="no adapter|has none|adapter"):
        started(method="finetune", adapter={"dynamics": {"kind": kind}})()


GATED = ("adalora", "allora", "codyra", "dora", "dylora", "hira", "moe-lora", "mora")
"""Methods whose update is not s B A of the live factors, so that no closed form is that of its gradient."""


@pytest.mark.parametrize("kind", ["altlora", "lora-pro"])
@pytest.mark.parametrize("method", GATED)
def test_it_refuses_a_pair_with_anything_between_or_around_it(method, kind, digits):
    with pytest.raises(ConflictError, match=f"{kind!r} needs two factors.*choose a method of plain pairs"):
        digits(method, adapter={"dynamics": {"kind": kind}})


@pytest.mark.parametrize("kind", DYNAMICS)
def test_a_loss_of_the_factors_is_added_after_the_closed_form(kind, lab):
    """The first step's gradients: what the dynamics make of the examples' alone, and the penalty's own."""

    def gradients(*parts: dict[str, Any]) -> dict[str, torch.Tensor]:
        learner = lab.learner("lora", *parts, adapter={"dynamics": {"kind": kind}})
        task = begin(learner, learner.tasks[0])
        for parameter in learner.live().values():  # off the anchor, where the penalty pulls
            parameter.data.add_(0.1)
        list(steps(learner, task, 1))
        return {n: p.grad.clone() for n, p in learner.model.named_parameters() if p.grad is not None}

    strength = 0.01
    alone, both = gradients(), gradients({"kind": "l2", "strength": strength})
    moved = {name for name in alone if name in both and not torch.equal(alone[name], both[name])}
    assert moved
    for name in moved:
        torch.testing.assert_close(both[name] - alone[name], torch.full_like(alone[name], 2 * strength * 0.1))


@pytest.mark.parametrize("kind", DYNAMICS)
@pytest.mark.parametrize(("method", "part"), [("lora", "ewc"), ("lora", "l2"), ("o-lora", "orthogonal")])
def test_a_loss_of_the_factors_does_not_blow_up(method, part, kind, digits):
    run = digits(
        method, adapter={"dynamics": {"kind": kind}}, strategy=[{"kind": part}], train={"steps": 40}, stream=TWO
    )
    for _, bank in banks_of(run.model).values():
        assert bank.tensor("B").isfinite().all() and bank.tensor("A").norm() < 100


def test_every_site_has_its_own_scale_and_pairs_are_found_by_site():
    """Three factors lie between A and B of one site in the order of parameters, were pairs taken by neighbourhood."""
    from rankwise.strategies.paired import pairs_of

    class Host:
        model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Linear(6, 4))

    attach(Host.model, pick_sites(Host.model), Pair(scale=2.0), {"seed": 0})
    grow(Host.model, [Change("append", "1", 2)], 0)
    found = pairs_of(Host(), "x")  # pyright: ignore[reportArgumentType]
    assert [(p.a.shape, p.b.shape, p.scale) for p in found] == [((2, 4), (6, 2), 2.0), ((2, 6), (4, 2), 2.0)]
    for pair, (_, bank) in zip(found, banks_of(Host.model).values(), strict=True):
        assert pair.a is bank.live["A"] and pair.b is bank.live["B"]
