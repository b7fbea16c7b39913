"""LoRA-FA: A stays at its draw, B learns, and a backward keeps A x instead of x."""

from __future__ import annotations

import pytest
import torch
from digit_runs import snapshots
from torch import nn

from rankwise.adapters import banks_of
from rankwise.api import adapt
from rankwise.errors import ConflictError


def test_a_keeps_its_bits_through_the_stream_and_b_learns(digits):
    run = digits("lora-fa", stream={"first_tasks": 2})
    drawn = adapt(nn.Sequential(nn.Linear(4, 4)), "lora-fa")
    assert [name for name, p in drawn.named_parameters() if p.requires_grad] == ["0.banks.0.live.B"]
    ends = snapshots(run.path)
    for name in (name for name in ends[0] if name.startswith("sites/")):
        assert torch.equal(ends[0][name], ends[1][name]) == name.endswith(".A"), name
    assert not any("live.A" in name or "fixed" in name for name in ends[1] if name.startswith("optimizer/"))
    learns = sum(8 * site.n_out for site, _ in banks_of(run.model).values())
    assert run.results["trainable_parameters"] == learns + 4 * 128


@pytest.mark.parametrize(("method", "kept"), [("lora", True), ("lora-fa", False)])
def test_a_backward_keeps_the_ranks_of_the_input_alone(method, kept):
    model = adapt(nn.Sequential(nn.Linear(64, 8)), method, rank=2)
    sizes: list[tuple[int, ...]] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (sizes.append(tuple(t.shape)), t)[1], lambda t: t):
        model(torch.randn(5, 64))
    assert ((5, 64) in sizes) is kept
    assert (5, 2) in sizes


def test_the_projection_moves_the_weight_along_the_rows_of_a(digits):
    moves = {}
    for project in (False, True):
        run = digits(
            "lora-fa",
            adapter={"dynamics": {"project": project}, "sites": ["q_proj"]},
            train={"optimizer": "sgd", "steps": 1},
            stream={"first_tasks": 1},
        )
        ((_, bank), *_) = banks_of(run.model).values()
        moves[project] = bank.tensor("B").detach(), bank.tensor("A")
    (raw, a), (projected, _) = moves[False], moves[True]
    torch.testing.assert_close(projected @ (a @ a.T + 1e-6 * torch.eye(len(a))), raw, rtol=1e-3, atol=1e-8)
    assert not torch.allclose(projected, raw)


def test_the_projection_is_refused_where_a_learns(tmp_path):
    import rankwise

    adapter = {"form": {"fixed": []}, "dynamics": {"project": True}}
    config = {"method": "lora-fa", "model": {"name": "embedded:vit"}, "stream": {"name": "digits"}, "adapter": adapter}
    with pytest.raises(ConflictError, match="fixed = .*A"):
        rankwise.run(config, out=tmp_path / "run")
