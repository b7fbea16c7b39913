"""Each Fisher is the one of its name, by hand; the penalty holds what it says; nothing to hold is refused."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from lab import begin, ends, events, learn, left, same, steps, terms_of, values
from torch import Tensor, nn

from rankwise import papers
from rankwise.errors import ConflictError
from rankwise.objectives import Outputs
from rankwise.strategies.ewc import Ewc, EwcSettings, fisher, penalty
from rankwise.strategies.l2 import distance
from rankwise.streams import Batch, Split, Task

X = torch.tensor([[1.0, 2.0], [0.5, -1.0], [-1.5, 0.25], [2.0, 1.0], [0.0, 1.0], [1.0, -0.5]])
Y = torch.tensor([0, 1, 2, 0, 1, 2])
W = torch.tensor([[0.3, -0.2], [0.1, 0.4], [-0.5, 0.2]])
P = torch.softmax(X @ W.T, 1)
RESIDUAL = P - F.one_hot(Y, 3)  # d loss / d logits of each example; its gradient is the outer product with x


class Scores:
    def logits(self, outputs: Outputs, batch: Batch, classes: Sequence[int]) -> Tensor:
        return outputs.features


class Host:
    """A learner of three classes by one linear map of two features."""

    objective = Scores()

    def __init__(self, batch_size: int = 2, moved: Tensor | None = None) -> None:
        self.model = nn.Linear(2, 3, bias=False)
        with torch.no_grad():
            self.model.weight.copy_(W if moved is None else moved)
        self.batch_size, self.forwards = batch_size, 0

    def forward(self, batch: Batch) -> Outputs:
        self.forwards += len(batch)
        return Outputs(self.model(batch.inputs["x"]))

    def losses(self, batch: Batch, classes: Sequence[int]) -> Tensor:
        return F.cross_entropy(self.forward(batch).features, batch.labels, reduction="none")

    def classes(self, task: Task) -> tuple[int, ...]:
        return task.classes

    def evaluating(self, batch: Batch) -> nullcontext[None]:
        return nullcontext()

    def batches(self, task: Task) -> Iterator[Batch]:
        for i in range(0, len(X), self.batch_size):
            where = slice(i, i + self.batch_size)
            yield Batch({"x": X[where]}, Y[where], torch.arange(len(X))[where])


def task(index: int = 0) -> Task:
    rows = Split(torch.zeros(len(X), 2, 2, dtype=torch.uint8), Y, torch.arange(len(X)))
    return Task(f"t{index}", index, (0, 1, 2), rows, None, rows)


def found(estimator: str, host: Host | None = None, seed: int = 0, **settings: object) -> Tensor:
    """Return the Fisher of one task as an EWC strategy holds it."""
    ewc = Ewc(EwcSettings(estimator=estimator, **settings), seed)
    ewc.end_task(host or Host(), task())
    return ewc.held[0].importance["weight"]


def outer(weights: Tensor) -> Tensor:
    """Return mean over examples of weights[n, c]^2 x[n, d]^2, as [c, d]."""
    return torch.einsum("nc,nd->cd", weights.square(), X.square()) / len(X)


# the estimators


def test_empirical_is_the_mean_of_squared_gradients_at_the_labels():
    torch.testing.assert_close(found("empirical"), outer(RESIDUAL))


def test_weighted_counts_each_example_by_the_probability_of_its_label():
    share = P[torch.arange(len(X)), Y].sqrt()[:, None]
    torch.testing.assert_close(found("weighted"), outer(share * RESIDUAL))


@pytest.mark.parametrize("size", [2, 3, 6])
def test_batch_squares_the_gradient_of_the_mean_loss_of_each_batch(size):
    gradients = torch.einsum("nc,nd->ncd", RESIDUAL, X)
    expected = torch.stack([part.mean(0).square() for part in gradients.split(size)]).mean(0)
    torch.testing.assert_close(found("batch", Host(size)), expected)


def test_sampled_is_the_true_fisher_in_expectation():
    drawn = torch.stack([found("sampled", seed=seed) for seed in range(400)])
    wanted = sum(outer(P[:, c : c + 1].sqrt() * (P - F.one_hot(torch.full_like(Y, c), 3))) for c in range(3))
    deviation = drawn.std(0) / len(drawn) ** 0.5
    assert ((drawn.mean(0) - wanted).abs() < 4.5 * deviation).all()
    assert not torch.allclose(wanted, outer(RESIDUAL), rtol=0.02)  # so that the test can tell them apart


def test_the_four_estimators_differ_and_are_never_negative():
    each = [found(name) for name in ("empirical", "weighted", "batch", "sampled")]
    assert all((f >= 0).all() for f in each)
    assert all(not torch.allclose(a, b, rtol=1e-3) for i, a in enumerate(each) for b in each[:i])


def test_fewer_samples_are_a_draw_of_rows_that_a_seed_repeats():
    host = Host()
    few = found("empirical", host, samples=3)
    assert host.forwards == 3
    gradients = torch.einsum("nc,nd->ncd", RESIDUAL, X).square()
    chosen = [torch.allclose(few, gradients[rows].mean(0)) for rows in torch.combinations(torch.arange(6), 3)]
    assert sum(chosen) == 1 and torch.equal(few, found("empirical", samples=3))


def test_a_parameter_that_no_loss_reaches_has_no_importance():
    used, idle = torch.ones(2, requires_grad=True), torch.ones(3, requires_grad=True)
    first, second = fisher([used, idle], [((used * 3).sum(), 1.0), ((used * 1).sum(), 2.0)])
    assert torch.equal(first, torch.full((2,), (9.0 + 2.0) / 2)) and torch.equal(second, torch.zeros(3))


# the penalty


def test_the_penalty_and_its_gradient_by_hand():
    theta = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    anchor, importance = torch.tensor([1.0, 1.0, 5.0]), torch.tensor([7.0, 0.5, 2.0])
    loss = penalty([theta], [anchor], [importance])
    assert float(loss.detach()) == 0.5 * 1 + 2.0 * 4  # no factor 1/2
    loss.backward()
    assert torch.equal(theta.grad, 2 * importance * (theta - anchor).detach())
    at = penalty([anchor.clone().requires_grad_()], [anchor], [importance])
    assert float(at.detach()) == 0


def test_with_a_fisher_of_one_it_is_l2():
    theta, anchor = torch.randn(4, 3), torch.randn(4, 3)
    assert torch.equal(penalty([theta], [anchor], [torch.ones(4, 3)]), distance([theta], [anchor]))


def two_tasks(**settings: object) -> tuple[Ewc, list[Tensor]]:
    """Return an EWC after two tasks with the weights elsewhere in the second, and both tasks' own Fishers."""
    ewc, hosts = Ewc(EwcSettings(**settings), 0), [Host(), Host(moved=W.roll(1, 0))]
    for i, host in enumerate(hosts):
        ewc.end_task(host, task(i))
    return ewc, [found("empirical", host) for host in hosts]


def test_online_keeps_one_fisher_around_the_newest_weights():
    for decay in (1.0, 0.25):
        ewc, (first, second) = two_tasks(mode="online", decay=decay)
        (held,) = ewc.held
        torch.testing.assert_close(held.importance["weight"], decay * first + second)
        assert torch.equal(held.anchors["weight"], W.roll(1, 0))


def test_offline_keeps_each_task_around_its_own_weights():
    ewc, fishers = two_tasks(mode="offline")
    live = torch.randn(3, 2)
    assert [h.anchors["weight"].tolist() for h in ewc.held] == [W.tolist(), W.roll(1, 0).tolist()]
    expected = sum((f * (live - h.anchors["weight"]).square()).sum() for f, h in zip(fishers, ewc.held, strict=True))
    torch.testing.assert_close(ewc.penalty({"weight": live}), expected)


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_a_restored_ewc_holds_the_same(mode):
    ewc, _ = two_tasks(mode=mode)
    other = Ewc(EwcSettings(mode=mode), 0)
    other.restore({name: tensor.clone() for name, tensor in ewc.state().items()})
    assert same(other.state(), ewc.state()) and len(other.held) == len(ewc.held)
    live = {"weight": torch.randn(3, 2)}
    assert torch.equal(other.penalty(live), ewc.penalty(live))


# in a run

EWC = {"kind": "ewc", "samples": 6}


def test_the_method_is_lora_with_the_strategy(digits):
    lora, ewc = papers.method("lora"), papers.method("ewc")
    assert ewc.defaults == {"strategy": [{"kind": "ewc"}]}
    assert (ewc.gate, ewc.form, ewc.growth, ewc.live) == (lora.gate, lora.form, lora.growth, lora.live)
    run = digits("ewc", strategy=[EWC])
    names = [set(event["losses"]) for event in events(run.path, "step")]
    assert names == [{"classify"}] * 5 + [{"classify", "ewc"}] * 10
    held = {key: fisher for key, fisher in ends(run.path)[-1].items() if "/importance/" in key}
    assert held and all((fisher >= 0).all() for fisher in held.values())


def test_there_is_no_penalty_in_the_first_task_and_none_at_the_first_step_of_a_later_one(lab):
    learner = lab.learner("lora", EWC)
    first = begin(learner, learner.tasks[0])
    assert [term.name for term in terms_of(learner, first, 0)] == ["classify"]
    list(steps(learner, first, 3))
    learner.end_task(first)
    second = begin(learner, learner.tasks[1])
    (_, term) = terms_of(learner, second, 3)
    loss = term.losses(None)
    live = [p for p in learner.model.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(loss, live)
    assert float(loss.detach()) == 0 and not any(gradient.any() for gradient in gradients)
    list(steps(learner, second, 1, 3))
    assert float(terms_of(learner, second, 4, 1)[1].losses(None).detach()) > 0


def test_the_fisher_is_taken_in_evaluation_mode_and_changes_nothing(lab):
    learner = lab.learner("lora", EWC, adapter={"dropout": 0.5})
    task = begin(learner, learner.tasks[0])
    list(steps(learner, task, 2))
    before = values(learner)
    for parameter in learner.model.parameters():
        parameter.grad = None
    one, two = (Ewc(EwcSettings(samples=6), 0) for _ in range(2))
    one.end_task(learner, task)
    two.end_task(learner, task)
    assert same(one.state(), two.state())  # no dropout mask between them
    assert same(values(learner), before) and all(p.grad is None for p in learner.model.parameters())
    assert learner.model.training


def test_no_strength_is_the_method_without_it_bit_for_bit(lab, tmp_path):
    plain = lab.run(tmp_path / "plain", "lora")
    held = lab.run(tmp_path / "held", "lora", {**EWC, "strength": 0.0})
    other = lab.run(tmp_path / "other", "lora", {**EWC, "strength": 1e4})
    one, two, three = (ends(out)[-1] for out in (plain, held, other))
    names = [name for name in one if name.startswith(("sites", "head"))]
    assert same(one, two, names) and not same(one, three, names)
    assert "ewc" in events(held, "step")[-1]["losses"]


def test_a_strong_hold_keeps_the_weights_where_they_were(lab):
    moved = {}
    for strength in (0.0, 1e6):
        learner = lab.learner("lora", {**EWC, "strength": strength, "samples": 15}, train={"optimizer": "sgd"})
        learn(learner, 1)
        held = learner.strategies[0].held[0]
        begin(learner, learner.tasks[1])
        before = values(learner)
        strongest = max(held.importance, key=lambda name: float(held.importance[name].max()))
        place = held.importance[strongest].argmax()
        rate = 1e-8 if strength else 1e-2
        learner.optimizers[0].param_groups[0]["peak"] = rate
        list(steps(learner, learner.tasks[1], 2, 3))
        moved[strength] = float((values(learner)[strongest] - before[strongest]).abs().flatten()[place])
    assert moved[1e6] < 1e-3 * moved[0.0]


@pytest.mark.parametrize(
    "settings", [{"mode": "offline", "estimator": "batch"}, {"estimator": "sampled", "decay": 0.5}]
)
def test_each_step_in_a_sitting_of_its_own(lab, tmp_path, settings):
    whole = lab.run(tmp_path / "whole", "lora", {**EWC, **settings})
    assert left(lab.in_sittings(tmp_path / "parts", "lora", {**EWC, **settings})) == left(whole)


def test_weights_that_are_no_longer_there_are_refused_by_name(lab):
    learner = lab.learner("lora", EWC)
    learn(learner, 1)
    held = learner.strategies[0].held[0]
    name = next(iter(held.anchors))
    held.anchors[name] = held.anchors[name][:1]
    task = begin(learner, learner.tasks[1])
    with pytest.raises(ConflictError, match="'ewc' holds weights that are no longer there"):
        terms_of(learner, task, 3)


def test_on_a_loop_of_ones_own_it_holds_from_the_second_task_on():
    import rankwise

    model = nn.Linear(2, 3, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batches = [{"x": X[i : i + 2], "y": Y[i : i + 2]} for i in range(0, 6, 2)]

    def losses(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return F.cross_entropy(model(batch["x"]), batch["y"], reduction="none")

    with rankwise.learning(model, "ewc", optimizer=optimizer, losses=losses, ewc={"strength": 2.0}) as hooks:
        losses(model, batches[0]).mean().backward()
        optimizer.step()
        hooks.end_task(batches)
        hooks.begin_task()
        with torch.no_grad():
            anchor = model.weight.clone()
            model.weight.add_(1.0)
        residual = torch.softmax(X @ anchor.T, 1) - F.one_hot(Y, 3)
        optimizer.zero_grad()
        optimizer.step()
    torch.testing.assert_close(model.weight.detach(), anchor + 1 - 0.1 * 2 * 2.0 * outer(residual))
