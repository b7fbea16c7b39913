"""Brainstacks: rounds, projection, what the router decides; on tensors, small models and toy domains."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import domains
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from rankwise.adapters import Change, Pair, adapter_of, banks_of, grow, using
from rankwise.api import adapt
from rankwise.learning.learner import Learner
from rankwise.papers.brainstacks import Stacks
from rankwise.papers.brainstacks.outcomes import one_hot
from rankwise.papers.brainstacks.projection import principal, project
from rankwise.papers.brainstacks.routing import mixture, stacks, weights
from rankwise.papers.brainstacks.settings import StackSettings
from rankwise.seeds import generator
from rankwise.streams import Batch, Task


def randn(*shape: int, key: str) -> Tensor:
    return torch.randn(*shape, generator=generator(0, key))


# The projection


def test_the_basis_is_orthonormal_and_spans_the_rows():
    rows = randn(30, 4, key="low") @ randn(4, 12, key="rank")
    basis = principal(rows, 64)
    assert basis.shape == (12, 4)  # no more than the rows' rank
    torch.testing.assert_close(basis.T @ basis, torch.eye(4), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(rows @ basis @ basis.T, rows, rtol=1e-4, atol=1e-4)
    dense = torch.eye(12) - basis @ basis.T
    torch.testing.assert_close(dense @ dense, dense, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(dense, dense.T)
    b = randn(12, 7, key="b")
    expected = dense @ b
    project(b, basis)
    torch.testing.assert_close(b, expected, rtol=1e-4, atol=1e-5)
    assert (basis.T @ b).norm() <= 1e-5 * b.norm()
    assert principal(torch.zeros(5, 4), 2).shape == (4, 0)
    assert principal(rows, 2).shape == (12, 2)


def test_projecting_b_is_projecting_the_output_and_folding_in_the_end():
    """The same course of training, in exact arithmetic: with weight decay, clipping and Adam's elementwise rule."""
    basis, target = principal(randn(20, 8, key="written").double(), 3), randn(64, 8, key="target").double()
    x, start = randn(64, 6, key="x").double(), randn(4, 6, key="A").double()
    off = torch.eye(8).double() - basis @ basis.T

    def course(inside: bool) -> Tensor:
        a = nn.Parameter(start.clone())
        b = nn.Parameter(torch.zeros(8, 4, dtype=torch.float64))
        rule = torch.optim.AdamW([a, b], lr=1e-2, weight_decay=0.1)
        for _ in range(30):
            rule.zero_grad()
            wide = x @ a.T @ b.T
            (((wide if inside else wide @ off) - target) ** 2).mean().backward()
            if inside:
                assert b.grad is not None
                project(b.grad, basis)
            nn.utils.clip_grad_norm_([a, b], 0.05)
            rule.step()
            with torch.no_grad():
                project(b, basis) if inside else None
        return (b if inside else off @ b) @ a

    torch.testing.assert_close(course(True), course(False), rtol=1e-9, atol=1e-11)


# Stacks on a language model


def llama() -> nn.Module:
    sizes: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 24, "vocab_size": 20}
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=1)).eval()


def test_with_a_frozen_stack_below_every_expert_that_was_chosen_learns_from_the_first_step():
    model = adapt(llama(), "brainstacks", rank=2, form={"balance": 0.0})
    for name, (_, bank) in banks_of(model).items():
        nn.init.normal_(bank.live["B"], std=0.3, generator=generator(0, name))
    grow(model, [Change("freeze"), Change("append", "2", 2)], 0)
    ids = torch.randint(0, 20, (4, 12), generator=generator(0, "ids"))
    model.train()(input_ids=ids, labels=ids).loss.backward()
    assert len(banks_of(model)) == 2 * 7
    for name, (_, bank) in banks_of(model).items():
        gradient = bank.live["B"].grad
        assert gradient is not None and (gradient.view(gradient.shape[0], 4, 2).norm(dim=(0, 2)) > 0).all(), name


def test_the_scale_is_rank_stabilised():
    model = adapt(llama(), "brainstacks", rank=16)
    form = adapter_of(model).branch
    assert isinstance(form, Pair) and form.scale == 4.0 and not math.isclose(form.scale, 1.0)


# The rounds


class Scripted(Stacks):
    """Stacks whose validation losses are given."""

    script: list[float]

    def look(self, host: Any) -> float:
        loss = self.script.pop(0)
        self.best.note(loss, {})
        return loss


def rounds(script: list[float], **settings: Any) -> int:
    """Return after how many looks, one a step, a round ends."""
    part = Scripted(StackSettings(eval_every=1, **settings))
    part.script = list(script)
    host: Any = type("Host", (), {"task": type("Task", (), {"validation": True})})
    for look in range(1, len(script) + 1):
        part.follow(host, look)
        if part.enough(host):
            return look
    return 0


def test_a_round_ends_on_a_spike_or_when_patience_is_out():
    falling = [1 - 0.01 * i for i in range(9)]
    assert rounds(falling) == 0
    assert rounds([1.0, 0.5, 0.59, 0.61]) == 4  # more than 0.1 above the best
    assert rounds([1.0, 0.9, 0.91, 0.92, 0.93, 0.94, 0.95], patience=4) == 6
    assert rounds([1.0, 0.9, 0.91, 0.89, 0.92, 0.93, 0.94], patience=3) == 7  # a new best starts it anew


@pytest.mark.parametrize(
    ("losses", "goes_on"),
    [
        ([], True),
        ([0.9], True),
        ([0.9, 0.8], True),
        ([0.9, 0.899], False),
        ([0.9, 1.2], False),
        ([0.9, 0.8, 0.5], False),
    ],
)
def test_there_is_another_round_while_the_last_one_paid(losses, goes_on):
    part = Stacks(StackSettings(rounds=3))
    host: Any = type("Host", (), {"rank": 4})
    done = [{"phase": f"round {i}", "loss": loss} for i, loss in enumerate(losses)]
    task: Any = type("Task", (), {"name": "a"})
    phase = part.plan(host, task, done)
    assert (phase is not None) is bool(goes_on)
    if phase is not None:
        assert [(c.op, c.label) for c in phase.changes] == [("freeze", ""), ("append", f"a#{len(losses) + 1}")]


def test_without_validation_rows_all_rounds_are_done():
    part = Stacks(StackSettings(rounds=2))
    host: Any = type("Host", (), {"rank": 4})
    task: Any = type("Task", (), {"name": "a"})
    assert part.plan(host, task, [{"phase": "round 1"}]) is not None
    assert part.plan(host, task, [{"phase": "round 1"}, {"phase": "round 2"}]) is None


# Runs on the toy of domains

SMALL = {"rounds": 2, "min_improvement": 0.0, "directions": 4, "eval_every": 5, "memory": 16, "width": 16}
ADAPTER = {"rank": 2, "sites": ["mlp.fc1", "o_proj"], "form": {"experts": 3}, "dynamics": SMALL}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return domains.base(tmp_path_factory.mktemp("base") / "vit")


def toy(base: Path, train: dict[str, Any] | None = None, **dynamics: Any) -> Callable[[], Learner]:
    """Return what makes a learner over two domains of few rows."""
    adapter = {**ADAPTER, "dynamics": {**SMALL, **dynamics}}
    settings = {"steps": 12, "batch_size": 8, "lr": 1e-2, **(train or {})}
    over = domains.stream(("A", "B"), train=16, validation=8, test=8)
    return lambda: domains.learner(base, "brainstacks", over, adapter=adapter, train=settings)


@pytest.fixture(scope="module")
def learnt(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Learner, Path]:
    """Learn both domains, routed."""
    made, out = toy(base)(), tmp_path_factory.mktemp("run") / "run"
    domains.learn(made, out)
    return made, out


def part_of(made: Learner) -> Stacks:
    part = made.strategies[-1]
    assert isinstance(part, Stacks)
    return part


def used(made: Learner, batch: Batch) -> Tensor:
    part = part_of(made)
    assert part.router is not None
    return weights(part.router, made, batch, part.settings)


def features(made: Learner, task: Task, **context: Any) -> Tensor:
    """Return the features of a task's test rows under a context of one's own."""

    def one(batch: Any) -> Tensor:
        with using(made.model, **{"mix": None, **context}):
            return made.forward(batch).features

    return made.each(task.test, one)


def test_each_domain_has_a_stack_a_round_and_all_are_frozen(learnt):
    made, _ = learnt
    for _, bank in banks_of(made.model).values():
        assert bank.labels[0] == "A#1" and "B#1" in bank.labels and set(bank.labels) <= {"A#1", "A#2", "B#1", "B#2"}
        assert not any(block.live for block in bank.blocks)


def test_earlier_stacks_stay_to_the_bit(learnt):
    first, second = domains.task_ends(learnt[1])
    names = [name for name in first if name.startswith("sites/") and name.endswith((".A", ".router", ".noise"))]
    assert names
    for name in names:
        assert torch.equal(second[name][: len(first[name])], first[name])


def test_later_stacks_write_nothing_where_earlier_ones_do(learnt):
    made, _ = learnt
    part, later = part_of(made), [label for label, d in stacks(made).items() if d]
    assert set(part.bases) == set(banks_of(made.model)) and later
    for name, (_, bank) in banks_of(made.model).items():
        b = bank.view(later)["B"]
        assert b.norm() > 1e-3 and (part.bases[name].T @ b).norm() <= 1e-5 * b.norm()


def test_without_directions_later_stacks_do_write_there(base, learnt, tmp_path):
    made = toy(base, directions=0, mode="ungated")()
    domains.learn(made, tmp_path / "run")
    part = part_of(learnt[0])
    energies = []
    for name, (_, bank) in banks_of(made.model).items():
        b = bank.view([label for label in bank.labels if label.startswith("B")])["B"]
        energies.append(float((part.bases[name].T @ b).square().sum() / b.square().sum()))
    assert max(energies) > 1e-2 and not part_of(made).bases


def test_weights_of_one_domain_are_a_model_of_its_stacks_alone(learnt):
    made, _ = learnt
    task = made.tasks[0]
    for d in range(2):
        own = tuple(label for label, domain in stacks(made).items() if domain == d)
        mix = mixture(made, one_hot(len(task.test), 2, d))
        torch.testing.assert_close(
            features(made, task, mix=mix), features(made, task, blocks=own), rtol=1e-5, atol=1e-5
        )
    none = mixture(made, torch.zeros(len(task.test), 2))
    assert torch.equal(features(made, task, mix=none), features(made, task, blocks=()))


def test_the_router_decides_in_evaluation_and_its_small_weights_are_none(learnt):
    made, _ = learnt
    part, task = part_of(made), made.tasks[1]
    batch = made.examples(torch.tensor([[1, 0], [1, 1], [1, 2]]))
    w = used(made, batch)
    assert w.shape == (3, 2) and ((w == 0) | (w > part.settings.gate)).all()
    mix = made.context(batch, None)["mix"]
    assert set(mix) == set(stacks(made)) and torch.equal(mix["B#1"], w[:, 1])
    assert "mix" not in made.context(batch, 0)  # a step of training sees all stacks
    before = part.settings
    part.settings = replace(before, gate=1.0, floor=0.0)
    assert torch.equal(made.features(task.test), features(made, task, blocks=()))
    part.settings = replace(before, gate=1.0, floor=0.2)
    assert torch.equal(used(made, batch), torch.tensor([[0.2, 0.0]] * 3))
    part.settings = before


def test_the_router_reads_the_bare_base(learnt):
    made, _ = learnt
    batch = made.examples(torch.tensor([[0, 0], [0, 1]]))
    before = used(made, batch)
    with using(made.model, blocks=("B#1",)):
        assert torch.equal(used(made, batch), before)


def test_told_the_domain_its_answers_never_change_again(base, tmp_path):
    made = toy(base, mode="oracle")()
    progress = domains.learn(made, tmp_path / "run")
    part = part_of(made)
    assert made.blocks_for(made.tasks[0]) == tuple(label for label, d in stacks(made).items() if d == 0)
    assert made.blocks_for(made.tasks[1]) == tuple(stacks(made))
    first = domains.task_ends(tmp_path / "run")[0]
    again = toy(base, mode="oracle")()
    again.restore(first, _values(tmp_path / "run", 1))
    now, then = made.features(made.tasks[0].test, made.blocks_for(made.tasks[0])), again.features(again.tasks[0].test)
    torch.testing.assert_close(now, then, rtol=1e-6, atol=1e-6)
    assert progress.rows[1][0] is not None and part.artefact() == {}


def _values(out: Path, tasks: int) -> Any:
    from rankwise.learning.ledger import Ledger

    ledger = Ledger(out)
    return ledger.read(ledger.task_ends()[tasks])[1]["learner"]


def test_a_round_leaves_its_best_values(base, tmp_path, monkeypatch):
    made = toy(base, train={"steps": 10}, rounds=1)()
    part, script, seen = part_of(made), [0.5, 0.9], []
    real = Stacks.look

    def look(self: Stacks, host: Any) -> float:
        seen.append({name: p.detach().clone() for name, p in host.live().items()})
        monkeypatch.setattr(host, "each", lambda split, do: torch.tensor([script[len(seen) - 1]]))
        try:
            return real(self, host)
        finally:
            monkeypatch.undo()
            monkeypatch.setattr(Stacks, "look", look)

    monkeypatch.setattr(Stacks, "look", look)
    part.settings = replace(part.settings, spike=1.0)
    made.begin_task(made.tasks[0])
    phase = part.plan(made, made.tasks[0], [])
    assert phase is not None
    made.enter_phase(phase)
    for value in (1.0, 2.0):
        with torch.no_grad():
            for parameter in made.live().values():
                parameter.fill_(value)
        part.best.steps += 5
        part.enough(made)
    assert part.end_phase(made, phase) == {"loss": 0.5}
    assert all((p == 1.0).all() for p in made.live().values()) and len(seen) == 2


def test_a_run_stopped_in_any_round_ends_as_if_it_had_not_been(base, tmp_path):
    make = toy(base, train={"steps": 6, "snapshot_seconds": 0}, eval_every=2, epochs=2)
    whole = domains.learn(make(), tmp_path / "whole")
    parts, sittings = domains.in_sittings(make, tmp_path / "parts", 4)
    assert sittings > 3 and parts.rows == whole.rows and parts.validation == whole.validation
    for one, two in zip(domains.task_ends(tmp_path / "whole"), domains.task_ends(tmp_path / "parts"), strict=True):
        assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_the_router_is_saved_beside_the_adapter(digits):
    dynamics = {"width": 8, "memory": 8, "rounds": 1, "epochs": 1}
    run = digits("brainstacks", adapter={"rank": 1, "sites": ["mlp.fc1"], "dynamics": dynamics})
    saved = load_file(str(run.path / "adapter" / "brainstacks.safetensors"))
    assert saved["queries.weight"].shape == (len(run.results["tasks"]) + 1, 8)
