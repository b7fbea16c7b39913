"""What the dynamics over pairs of factors share: any method with pairs takes them, and no other does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import rankwise
from rankwise.adapters import Change, Pair, attach, banks_of, grow, pick_sites
from rankwise.errors import ConflictError

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
@pytest.mark.parametrize(("method", "part"), [("lora", "ewc"), ("lora", "l2"), ("lora-append", "orthogonal")])
def test_it_refuses_a_loss_of_the_factors_themselves(method, part, kind, digits):
    with pytest.raises(ConflictError, match=f"{kind!r} and {part!r}, which adds a loss of the factors themselves"):
        digits(method, adapter={"dynamics": {"kind": kind}}, strategy=[{"kind": part}])


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
