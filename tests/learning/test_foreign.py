"""Strategies on a training loop that is not ours, and `rankwise.learning`, which is a package and a verb."""

from __future__ import annotations

import importlib
import types
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

import pytest
import torch
from torch import nn

import rankwise
from rankwise.config import Section
from rankwise.errors import ConflictError, UsageError
from rankwise.learning.foreign import Hooks
from rankwise.strategies import STRATEGIES, Host, Strategy


class ProbeSettings(Section):
    """Settings of the strategies in this file."""

    kind: str = "probe"
    factor: float = 0.5


class Probe(Strategy):
    """Scales gradients, clamps values and notes what it saw and when."""

    name: ClassVar[str] = "probe"

    def __init__(self, settings: ProbeSettings, seed: int) -> None:
        self.factor, self.seed, self.seen = settings.factor, seed, []

    def note(self, hook: str, host: Host, step: int) -> None:
        self.seen.append((hook, step, {n: p.detach().clone() for n, p in host.live().items()}))

    def shape(self, host: Host, step: int) -> None:
        self.note("shape", host, step)
        for parameter in host.live().values():
            if parameter.grad is not None:
                parameter.grad.mul_(self.factor)

    def settle(self, host: Host, step: int) -> None:
        self.note("settle", host, step)
        with torch.no_grad():
            for parameter in host.live().values():
                parameter.clamp_(-0.5, 0.5)

    def follow(self, host: Host, step: int) -> None:
        self.note("follow", host, step)


class Setter(Probe):
    """Claims the live values for itself."""

    name: ClassVar[str] = "setter"
    writes: ClassVar[Mapping[str, Literal["add", "set"]]] = {"live": "set"}


class Rival(Setter):
    """So does this one."""

    name: ClassVar[str] = "rival"


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """Register the strategies of this file; gives the instances made, by name."""
    instances: dict[str, Any] = {}
    for kind in (Probe, Setter, Rival):

        def make(settings: ProbeSettings, seed: int, kind: type[Probe] = kind) -> Probe:
            return instances.setdefault(kind.name, kind(settings, seed))

        monkeypatch.setitem(STRATEGIES, kind.name, (ProbeSettings, make))  # pyright: ignore[reportArgumentType]
    yield instances


def model_and_optimizer(rate: float = 0.1) -> tuple[nn.Module, torch.optim.SGD]:
    torch.manual_seed(0)
    model = rankwise.adapt(nn.Sequential(nn.Linear(3, 2)), "lora", rank=2)
    return model, torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=rate)


def one_step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    (model(torch.ones(4, 3)) - 1).square().mean().backward()
    optimizer.step()


def test_learning_is_a_package_and_a_verb():
    package = importlib.import_module("rankwise.learning")
    assert isinstance(package, types.ModuleType) and rankwise.learning is package
    from rankwise import learning
    from rankwise.learning import metrics

    assert callable(learning) and learning is package and package.metrics is metrics
    model, optimizer = model_and_optimizer()
    with rankwise.learning(model, optimizer=optimizer) as hooks:
        assert isinstance(hooks, Hooks)
        one_step(model, optimizer)
    assert hooks.step == 1


def test_the_hooks_run_in_order_around_the_step(made):
    model, optimizer = model_and_optimizer()
    with rankwise.learning(model, "probe", optimizer=optimizer, seed=9) as hooks:
        for _ in range(3):
            one_step(model, optimizer)
    probe = made["probe"]
    assert [(hook, step) for hook, step, _ in probe.seen] == [
        (hook, step) for step in range(3) for hook in ("shape", "settle", "follow")
    ]
    assert hooks.step == 3 and probe.seed == 9 and (hooks.seen, hooks.tasks) == ((), ())
    before, stepped, settled = (values for _, _, values in probe.seen[:3])
    assert set(before) == {"0.banks.0.live.A", "0.banks.0.live.B"}
    assert any(not torch.equal(before[name], stepped[name]) for name in before)
    assert all(torch.equal(settled[name], stepped[name].clamp(-0.5, 0.5)) for name in before)


def test_the_optimizer_uses_the_shaped_gradient_and_the_settings(made):
    start, optimizer = model_and_optimizer(rate=0.01)
    before = [p.detach().clone() for p in start.parameters() if p.requires_grad]
    one_step(start, optimizer)
    plain = [p.detach() - b for p, b in zip((p for p in start.parameters() if p.requires_grad), before, strict=True)]
    model, optimizer = model_and_optimizer(rate=0.01)
    with rankwise.learning(model, "probe", optimizer=optimizer, probe={"factor": 0.25}):
        one_step(model, optimizer)
    moved = [p.detach() - b for p, b in zip((p for p in model.parameters() if p.requires_grad), before, strict=True)]
    assert all(torch.allclose(m, 0.25 * p, atol=1e-7) for m, p in zip(moved, plain, strict=True))
    assert any(p.abs().max() > 1e-4 for p in plain)


def test_all_settle_before_any_follows(made):
    model, optimizer = model_and_optimizer()
    order: list[str] = []
    with rankwise.learning(model, "probe", "setter", optimizer=optimizer):
        for name in ("probe", "setter"):
            made[name].note = lambda hook, host, step, name=name: order.append(f"{hook} {name}")
        one_step(model, optimizer)
    assert order == [f"{hook} {name}" for hook in ("shape", "settle", "follow") for name in ("probe", "setter")]


def test_the_hooks_are_gone_after_the_block_and_after_an_exception(made):
    model, optimizer = model_and_optimizer()
    with pytest.raises(ZeroDivisionError), rankwise.learning(model, "probe", optimizer=optimizer):
        one_step(model, optimizer)
        _ = 1 / 0
    one_step(model, optimizer)
    assert len(made["probe"].seen) == 3


def test_replay_is_refused_by_name():
    model, optimizer = model_and_optimizer()
    refused = pytest.raises(ConflictError, match=r"'replay' brings batches of its own.*use rankwise\.run")
    with refused, rankwise.learning(model, "replay", optimizer=optimizer):
        pass
    one_step(model, optimizer)


@pytest.mark.parametrize(
    ("names", "settings", "message"),
    [
        (["prob"], {}, "strategy 'prob' does not exist; did you mean 'probe'"),
        (["probe"], {"probe": {"facto": 1.0}}, "unknown key 'facto'; did you mean 'factor'"),
        (["probe"], {"probe": {"factor": "x"}}, "factor = 'x'"),
        (["setter", "rival"], {}, "'setter' and 'rival' both set live"),
        (["probe"], {"setter": {"factor": 1.0}}, "settings for 'setter', which is not among the strategies"),
    ],
)
def test_wrong_words_are_refused(made, names, settings, message):
    model, optimizer = model_and_optimizer()
    with pytest.raises(UsageError, match=message), rankwise.learning(model, *names, optimizer=optimizer, **settings):
        pass


def test_a_strategy_that_asks_for_losses_or_examples_is_told_why_not():
    model, optimizer = model_and_optimizer()
    with rankwise.learning(model, optimizer=optimizer) as hooks:
        with pytest.raises(UsageError, match="takes its own losses"):
            hooks.losses(None, ())  # pyright: ignore[reportArgumentType]
        with pytest.raises(UsageError, match="holds its own data"):
            hooks.examples(torch.zeros(1, 2))
