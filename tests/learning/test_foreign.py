"""Strategies on a training loop that is not ours, and `rankwise.learning`, which is a package and a verb."""

from __future__ import annotations

import importlib
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rankwise
from rankwise.errors import ConflictError, UsageError
from rankwise.learning.foreign import Hooks, as_batch
from rankwise.strategies import STRATEGIES
from rankwise.tensors import load_tensors, save_tensors


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
    assert hooks.step == 3 and probe.seed == 9 and hooks.seen == () and [task.name for task in hooks.tasks] == ["1"]
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
        (
            ["ruler"],
            {},
            "'ruler' takes over the rule of the optimiser, which a foreign loop does not let it; use rankw",
        ),
        (["probe"], {"setter": {"factor": 1.0}}, "settings for 'setter', which is not among the strategies"),
    ],
)
def test_wrong_words_are_refused(made, names, settings, message):
    model, optimizer = model_and_optimizer()
    with pytest.raises(UsageError, match=message), rankwise.learning(model, *names, optimizer=optimizer, **settings):
        pass


def test_a_strategy_that_asks_for_what_the_loop_has_not_is_told_so():
    model, optimizer = model_and_optimizer()
    batch: Any = as_batch({"x": torch.ones(2, 3)})
    with rankwise.learning(model, optimizer=optimizer) as hooks:
        for ask, message in (
            (lambda: hooks.losses(batch, ()), r"takes its own losses; give losses = \(model, batch\)"),
            (lambda: hooks.examples(torch.zeros(1, 2)), "does not give rows; it holds its own data"),
            (lambda: hooks.batches(hooks.task), r"give the task's batches: end_task\(batches\)"),
            (lambda: hooks.forward(batch), "does not give outputs"),
            (lambda: hooks.objective, "does not give an objective"),
            (lambda: hooks.steps(hooks.task), "does not give the number of its steps"),
            (lambda: hooks.features(hooks.task.train), "does not give features"),
            (lambda: hooks.each(hooks.task.train, lambda batch: batch.ids), "does not give rows"),
            (lambda: hooks.rehearse(batch, ()), "does not give remembered examples"),
            (lambda: hooks.backbone, "does not give a base that encodes raw inputs"),
            (lambda: hooks.batch, "does not give the examples of its steps"),
            (lambda: hooks.train, "does not give settings of training"),
            (lambda: hooks.rank, "does not give a rank"),
            (lambda: hooks.rule([]), "does not give its rule to parts"),
            (lambda: hooks.end_task(iter([])), "not an iterator"),
            (lambda: hooks.begin_task(), "'1' has not ended"),
        ):
            with pytest.raises(UsageError, match=message):
                ask()
        hooks.end_task()
        with pytest.raises(UsageError, match="no task has begun"):
            hooks.end_task()


def test_factors_of_an_adapter_are_asked_of_an_adapted_model(made):
    plain = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1)
    with pytest.raises(ConflictError, match="'factors' works on the factors"):
        rankwise.learning(plain, "factors", optimizer=optimizer).__enter__()
    model, optimizer = model_and_optimizer()
    with rankwise.learning(model, "factors", optimizer=optimizer):
        one_step(model, optimizer)


# A loop of one's own, task after task.


def each_loss(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    return (model(batch["x"]) - batch["y"]).square().mean(1)


def data(task: int) -> list[dict[str, Tensor]]:
    rng = torch.Generator().manual_seed(task)
    return [{"x": torch.randn(4, 3, generator=rng), "y": torch.randn(4, 2, generator=rng)} for _ in range(3)]


def learn(model: nn.Module, optimizer: torch.optim.Optimizer, task: int) -> None:
    for batch in data(task):
        optimizer.zero_grad()
        each_loss(model, batch).mean().backward()
        optimizer.step()


def values(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters() if p.requires_grad]


def test_a_penalty_is_added_from_the_second_task_on(made):
    model, optimizer = model_and_optimizer()
    with rankwise.learning(model, "fisher", optimizer=optimizer, losses=each_loss, fisher={"factor": 3.0}) as hooks:
        learn(model, optimizer, 1)
        hooks.end_task(data(1))
        hooks.begin_task("second")
        learn(model, optimizer, 2)
        hooks.end_task(data(2))
    assert made["fisher"].rows == [12, 12] and [task.name for task in hooks.tasks] == ["1", "second"]
    other, optimizer = model_and_optimizer()
    learn(other, optimizer, 1)
    live = {n: p for n, p in other.named_parameters() if p.requires_grad}
    anchors = {n: p.detach().clone() for n, p in live.items()}
    weights = dict.fromkeys(live, torch.zeros(()))
    for batch in data(1):
        for loss in each_loss(other, batch):
            for n, g in zip(live, torch.autograd.grad(loss, list(live.values()), retain_graph=True), strict=True):
                weights[n] = weights[n] + g.square() / 12
    for batch in data(2):
        optimizer.zero_grad()
        penalty = sum(((weights[n] * (p - anchors[n]).square()).sum() for n, p in live.items()), torch.zeros(()))
        (each_loss(other, batch).mean() + 3.0 * penalty).backward()
        optimizer.step()
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(values(model), values(other), strict=True))
    assert any(float((a - b).abs().max()) > 1e-4 for a, b in zip(values(other), anchors.values(), strict=True))


def test_state_goes_into_a_checkpoint_and_back(made, tmp_path: Path):
    model, optimizer = model_and_optimizer()
    with rankwise.learning(model, "fisher", optimizer=optimizer, losses=each_loss) as hooks:
        learn(model, optimizer, 1)
        hooks.end_task(data(1))
        hooks.begin_task()
        (tmp_path / "state.safetensors").write_bytes(save_tensors(hooks.state()))
        weights = {n: p.detach().clone() for n, p in model.state_dict().items()}
        learn(model, optimizer, 2)
    resumed, optimizer = model_and_optimizer()
    resumed.load_state_dict(weights)
    with rankwise.learning(resumed, "fisher", optimizer=optimizer, losses=each_loss) as again:
        again.restore(load_tensors(tmp_path / "state.safetensors"))
        learn(resumed, optimizer, 2)
        assert again.step == hooks.step == 6 and again.task.index == 1
    assert all(torch.equal(a, b) for a, b in zip(values(resumed), values(model), strict=True))


def test_deployed_values_answer_inside_the_block_only(made):
    model, optimizer = model_and_optimizer()
    with rankwise.learning(model, "average", optimizer=optimizer) as hooks:
        learn(model, optimizer, 1)
    last, x = values(model), torch.ones(1, 3)
    means = list(made["average"].deployed().tensors.values())
    with hooks.showing_deployed() as answering:
        assert answering is model and all(torch.equal(a, b) for a, b in zip(values(model), means, strict=True))
        shown = model(x)
    assert all(torch.equal(a, b) for a, b in zip(values(model), last, strict=True))
    assert torch.equal(hooks.under(made["average"].deployed(), lambda: model(x)), shown)
    assert not torch.equal(model(x), shown)


@pytest.mark.parametrize("batch", [torch.ones(2, 3), {}, {"x": torch.ones(2), "y": torch.ones(3)}, {"x": "text"}, [1]])
def test_a_batch_of_another_form_is_refused(batch):
    with pytest.raises(UsageError, match="is a mapping of tensors with one row an example, not"):
        as_batch(batch)


def test_the_loops_generator_is_left_alone(made):
    model, optimizer = model_and_optimizer()
    with rankwise.learning(model, "fisher", "probe", optimizer=optimizer, losses=each_loss) as hooks:
        torch.manual_seed(5)
        learn(model, optimizer, 1)
        hooks.end_task(data(1))
        hooks.begin_task()
        learn(model, optimizer, 2)
        drawn = torch.rand(1)
    assert torch.equal(drawn, torch.rand(1, generator=torch.Generator().manual_seed(5)))


# The strategies there are.


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_ewc_holds_the_first_task_on_ones_own_loop(mode):
    """By hand: the mean squared gradient of each example, and twice its product with the way from the anchor."""
    settings: dict[str, Any] = {"strength": 2.0, "mode": mode}
    model, optimizer = model_and_optimizer()
    with rankwise.learning(model, "ewc", optimizer=optimizer, losses=each_loss, ewc=settings) as hooks:
        learn(model, optimizer, 1)
        hooks.end_task(data(1))
        hooks.begin_task()
        live = hooks.live()
        anchors = {name: p.detach().clone() for name, p in live.items()}
        fisher = {name: torch.zeros_like(p) for name, p in live.items()}
        for batch in data(1):
            for loss in each_loss(model, batch):
                for n, g in zip(live, torch.autograd.grad(loss, list(live.values()), retain_graph=True), strict=True):
                    fisher[n] += g.square() / 12
        with torch.no_grad():
            for parameter in live.values():
                parameter.add_(0.1)
        optimizer.zero_grad()
        expected = {n: p - 0.1 * 2 * 2.0 * fisher[n] * (p - anchors[n]) for n, p in live.items()}
        optimizer.step()
        assert all(torch.allclose(p, expected[n], atol=1e-7) for n, p in live.items())
        assert any(not torch.equal(p, anchors[n] + 0.1) for n, p in live.items())


def test_l2_and_ema_go_together_on_ones_own_loop():
    model, optimizer = model_and_optimizer()
    start = values(model)
    with rankwise.learning(model, "l2", "ema", optimizer=optimizer, l2={"strength": 1.0}, ema={"decay": 0.5}) as hooks:
        for task in (1, 2):
            learn(model, optimizer, task)
            hooks.end_task()
            if task == 1:
                hooks.begin_task()
        last = values(model)
        with hooks.showing_deployed():
            slow = values(model)
    assert all(not torch.equal(a, b) for a, b in zip(slow, last, strict=True))
    free, optimizer = model_and_optimizer()
    for task in (1, 2):
        learn(free, optimizer, task)
    way = [sum(float((a - b).square().sum()) for a, b in zip(end, start, strict=True)) for end in (last, values(free))]
    assert way[0] < way[1]


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("ewc", {"estimator": "sampled"}, "'ewc': a foreign loop knows no classes.*use 'empirical'"),
        ("orthogonal", {}, "'orthogonal' and blocks that come as 'keep'"),
    ],
)
def test_a_strategy_that_needs_more_is_refused_before_anything_is_trained(name, settings, message):
    model, optimizer = model_and_optimizer()
    refused = pytest.raises(ConflictError, match=message)
    with refused, rankwise.learning(model, name, optimizer=optimizer, **{name: settings}):
        pass


WORK = {"ewc", "l2", "ema"}


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_works_or_is_refused_before_the_first_step(name):
    model, optimizer = model_and_optimizer()
    before = values(model)
    learnt = rankwise.learning(model, name, optimizer=optimizer, losses=each_loss)
    if name not in WORK:
        with pytest.raises(ConflictError, match=f"'{name}'"), learnt:
            pass
        assert all(torch.equal(a, b) for a, b in zip(values(model), before, strict=True))
        return
    with learnt as hooks:
        for task in (1, 2):
            learn(model, optimizer, task)
            hooks.end_task(data(task))
            if task == 1:
                hooks.begin_task()
    assert hooks.step == 6 and all(bool(torch.isfinite(tensor).all()) for tensor in hooks.state().values())
