"""One step: learning rates, clipping, micro-batches that do not come out even, draws, precision."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from rankwise import api, papers
from rankwise.errors import NonFiniteError
from rankwise.learning.learner import Learner
from rankwise.learning.step import backward, clip, micro_batches, rate_at, seed_draws, step
from rankwise.strategies import Term
from rankwise.streams import Batch


def learner(small: Any, method: str = "lora", **tables: Any) -> Learner:
    """A learner at the first step of its first task."""
    config, found = api.resolve(small.config(method, **tables))
    made = api.learner_of(config, found)
    made.begin_task(made.curriculum[0])
    made.enter_phase(found.phases[0])
    made.backbone.module.train()
    return made


def own(made: Learner, number: int = 0) -> Term:
    task = made.curriculum[0]
    return Term("classify", made.loader(task).batch(number), lambda part: made.losses(part, task.classes))


@pytest.mark.parametrize(
    ("schedule", "warmup", "expected"),
    [
        ("constant", 0.0, [1, 1, 1, 1]),
        ("linear", 0.0, [1, 0.75, 0.5, 0.25]),
        ("cosine", 0.0, [1, 0.5 + math.sqrt(0.125), 0.5, 0.5 - math.sqrt(0.125)]),
        ("constant", 0.5, [1 / 3, 2 / 3, 1, 1]),
        ("linear", 0.5, [1 / 3, 2 / 3, 1, 0.5]),
        ("cosine", 0.5, [1 / 3, 2 / 3, 1, 0.5]),
        ("cosine", 0.3, [1 / 3, 2 / 3, 1, 0.5]),  # a share of a step is rounded up
    ],
)
def test_courses_of_the_learning_rate(schedule, warmup, expected):
    assert [rate_at(schedule, warmup, done, 4) for done in range(4)] == pytest.approx(expected)


def test_the_rate_reaches_every_group(small):
    made = learner(small, train={"lr": 0.002}, objective={"lr": 0.03})
    step(made, [own(made)], 0, 0.25)
    assert [group["lr"] for group in made.optimizers[0].param_groups] == pytest.approx([0.0005, 0.0075])


def gradients(made: Learner) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in made.live().values() if p.grad is not None])


def test_clipping_keeps_direction_and_caps_the_norm(small):
    free, capped = learner(small), learner(small, train={"clip": 0.01})
    step(free, [own(free)], 0, 1.0)
    step(capped, [own(capped)], 0, 1.0)
    long, short = gradients(free), gradients(capped)
    assert long.norm() > 0.1
    assert short.norm() == pytest.approx(0.01, rel=1e-3)
    assert torch.cosine_similarity(long, short, dim=0) == pytest.approx(1.0, abs=1e-6)


def test_clipping_leaves_short_gradients_alone(small):
    free, capped = learner(small), learner(small, train={"clip": 100.0})
    step(free, [own(free)], 0, 1.0)
    step(capped, [own(capped)], 0, 1.0)
    assert torch.equal(gradients(free), gradients(capped))


def test_clip_refuses_what_is_not_finite():
    parameter = nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([1.0, float("inf")])
    batch = Batch({}, torch.zeros(9, dtype=torch.long), torch.arange(9))
    with pytest.raises(NonFiniteError, match=r"step 7: .*'a': \[0, 1, 2, 3, 4, 5, 6, 7\]\.\.\."):
        clip([Term("a", batch, lambda part: part.labels)], [parameter], None, 7)


@pytest.mark.parametrize("accumulate", [2, 3, 4, 5])
def test_the_gradient_does_not_depend_on_the_cut(small, accumulate):
    """The last batch of the epoch holds 3 rows, so four and five micro-batches leave some empty."""
    whole, cut = (learner(small, train={"batch_size": 6, "accumulate": n}) for n in (1, accumulate))
    for made in (whole, cut):
        loss = backward(made, own(made, 2), 2)
        made.loss = float(loss)  # pyright: ignore[reportAttributeAccessIssue]
    assert len(own(cut, 2).batch) == 3
    assert cut.loss == pytest.approx(whole.loss, abs=1e-6)  # pyright: ignore[reportAttributeAccessIssue]
    torch.testing.assert_close(gradients(cut), gradients(whole), rtol=0, atol=1e-6)


def cutter(world: int, rank: int, accumulate: int, sharded: bool) -> Any:
    from rankwise.learning.processes import Processes

    processes = Processes(torch.device("cpu"), rank, world, sharded=sharded)
    return SimpleNamespace(processes=processes, config=SimpleNamespace(train=SimpleNamespace(accumulate=accumulate)))


@pytest.mark.parametrize("sharded", [False, True])
def test_micro_batches_of_all_processes_make_up_the_batch(sharded):
    batch = Batch({"x": torch.arange(3.0)}, torch.zeros(3, dtype=torch.long), torch.arange(3))
    seen: list[int] = []
    for rank in (0, 1):
        parts = list(micro_batches(cutter(2, rank, 3, sharded), batch))
        assert len(parts) == (3 if sharded else len([p for p in parts if p[2]]))
        seen += [i for _, part, share in parts if share for i in part.ids.tolist()]
        assert all(share in (0.0, 1 / 3) for _, _, share in parts)
    assert seen == [0, 1, 2]


def test_draws_are_functions_of_counters(small):
    made = learner(small)
    draws = {}
    for key in [("a", 0, 0), ("a", 1, 0), ("a", 0, 1), ("b", 0, 0)]:
        seed_draws(made, key[0], key[1], key[2])
        draws[key] = torch.rand(4)
    seed_draws(made, "a", 0, 0)
    assert torch.equal(torch.rand(4), draws["a", 0, 0])
    assert len({tuple(draw.tolist()) for draw in draws.values()}) == 4


def test_a_term_more_does_not_change_the_draws_of_another(small):
    one, two = (learner(small, adapter={"dropout": 0.5}) for _ in range(2))
    alone = step(one, [own(one)], 0, 1.0)["classify"]
    other = Term("other", own(two).batch, own(two).losses, 0.5)
    assert step(two, [other, own(two)], 0, 1.0)["classify"] == alone


def test_weights_of_terms(small):
    one, two = learner(small), learner(small)
    backward(one, own(one), 0)
    half = Term("classify", own(two).batch, own(two).losses, 0.5)
    backward(two, half, 0)
    torch.testing.assert_close(gradients(two) * 2, gradients(one))


def test_bf16_learns(small, tmp_path):
    """On the embedded base, forwards in bf16 give nearly the scores of float32, and parameters stay float32."""
    tables = {"model": {"name": "embedded:vit"}, "train": {"steps": 4, "batch_size": 16}}
    scores = {}
    for precision in ("float32", "bf16"):
        tables["train"]["precision"] = precision
        out = small.run(tmp_path / precision, "lora", **tables)
        assert {tensor.dtype for name, tensor in small.weights(out).items() if "owners" not in name} == {torch.float32}
        scores[precision] = json.loads((out / "results.json").read_text())["matrix"]
    assert small.losses(tmp_path / "bf16") != small.losses(tmp_path / "float32")
    assert small.losses(tmp_path / "bf16") == pytest.approx(small.losses(tmp_path / "float32"), rel=0.1, abs=0.02)
    for t, j in ((0, 0), (1, 0), (1, 1)):
        assert abs(scores["bf16"][t][j] - scores["float32"][t][j]) <= 0.15
        assert scores["bf16"][t][j] >= 0.4


def test_a_frozen_block_stays_bit_for_bit(small, tmp_path):
    watch = small.copying(tmp_path / "run", tmp_path)
    small.run(tmp_path / "run", "lora-append", watch)
    ends = sorted((tmp_path / "run" / "checkpoints").glob("step-*"))
    first, last = (small.tensors(ends[0]), small.tensors(ends[-1]))
    names = [name for name in first if name.startswith("sites/") and "/live." in name]
    assert names
    for name in names:
        frozen = last[name.replace("/live.", "/frozen.")]
        assert torch.equal(frozen, first[name]), name
        assert not torch.equal(last[name], first[name]), name


def test_every_method_lists_its_phases():
    assert all(abs(sum(phase.share for phase in papers.method(s).phases) - 1) < 1e-9 for s in papers.slugs())
