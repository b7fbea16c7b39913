"""MoRA on a model: what grows with it, what it measures, what it refuses."""

from __future__ import annotations

import pytest
import torch
from pools import randn
from torch import nn

from rankwise.adapters import Sink, adapter_of, banks_of, using
from rankwise.api import adapt, export, load, merge, save
from rankwise.errors import UsageError
from rankwise.papers.mora import SelfActivated

WIDTH, OUT = 24, 20


def test_a_merge_or_an_export_is_refused_and_changes_nothing(tmp_path):
    model = adapt(nn.Sequential(nn.Linear(WIDTH, OUT)), "mora", rank=4).eval()
    (_, bank), *_ = banks_of(model).values()
    nn.init.normal_(bank.live["B"])
    x = randn(5, WIDTH, key="x")
    before = model(x)
    with pytest.raises(UsageError, match="SelfActivated: .*depends on the input.*rankwise.save"):
        merge(model)
    with pytest.raises(UsageError, match="rankwise.save"):
        export(model, tmp_path / "peft")
    assert torch.equal(model(x), before) and not (tmp_path / "peft").exists()


def test_every_switch_is_saved_with_the_adapter(tmp_path):
    switches = {
        "level": "block",
        "scores": "absolute",
        "threshold": 0.1,
        "threshold_unit": "pool",
        "normalise_keys": True,
    }
    model = adapt(nn.Sequential(nn.Linear(WIDTH, OUT)), "mora", rank=4, gate=switches)
    base = nn.Sequential(nn.Linear(WIDTH, OUT))
    base.load_state_dict({"0.weight": model[0].base.weight, "0.bias": model[0].base.bias})  # pyright: ignore[reportIndexIssue]
    save(model, tmp_path / "a")
    assert adapter_of(load(base, tmp_path / "a")).branch == adapter_of(model).branch


def test_a_linear_router_is_a_tensor_that_learns_and_freezes_with_its_block():
    model = adapt(nn.Sequential(nn.Linear(WIDTH, OUT)), "mora", rank=4, gate={"router": "linear"})
    (_, bank), *_ = banks_of(model).values()
    assert bank.live["router"].shape == (4, WIDTH)
    nn.init.normal_(bank.live["B"])
    model(randn(5, WIDTH, key="x")).square().sum().backward()
    assert bank.live["router"].grad is not None and bank.live["router"].grad.norm() > 0
    bank.freeze()
    assert not list(bank.live.parameters()) and bank.view()["router"].shape == (4, WIDTH)


@pytest.mark.parametrize(
    ("base", "x"), [(nn.Embedding(9, 6), torch.tensor([[1, 2]])), (nn.Conv2d(2, 6, 3), torch.ones(1, 2, 5, 5))]
)
def test_a_linear_router_refuses_sites_whose_input_is_no_feature_vector(base, x):
    model = adapt(nn.Sequential(base), "mora", rank=4, sites="0", gate={"router": "linear"})
    with pytest.raises(UsageError, match="router = 'linear'"):
        model(x)
    torch.testing.assert_close(adapt(nn.Sequential(base), "mora", rank=4, sites="0")(x), base(x), rtol=0, atol=0)


def test_a_model_under_autocast_routes_nearly_as_in_float32():
    model = adapt(nn.Sequential(nn.Linear(WIDTH, OUT)), "mora", rank=16)
    (_, bank), *_ = banks_of(model).values()
    nn.init.normal_(bank.live["B"])
    x = randn(200, WIDTH, key="x")
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        low = model.eval()(x)
    assert low.dtype == torch.bfloat16
    error = (low.float() - model(x)).norm() / model(x).norm()
    assert error < 0.05


def test_what_is_measured_per_token_ignores_padding():
    model = adapt(nn.Sequential(nn.Linear(WIDTH, OUT)), "mora", rank=16, gate={"temperature": 0.05, "threshold": 0.2})
    x, tokens = randn(3, 7, WIDTH, key="x"), torch.ones(3, 7, dtype=torch.bool)
    tokens[0, 4:] = tokens[2, 1:] = False
    (_, bank), *_ = banks_of(model).values()
    whole, padded = Sink(), Sink()
    with torch.no_grad(), using(model, sink=whole):
        model.eval()(x[tokens])
    noise = torch.where(tokens[..., None], x, 100 * randn(3, 7, WIDTH, key="padding"))
    with torch.no_grad(), using(model, sink=padded, tokens=tokens):
        model(noise)
    assert set(whole.means()) == {"active_atoms", "pass_rate", "block_share"}
    for name, values in whole.means().items():
        assert padded.means()[name] == pytest.approx(values), name
    gate = adapter_of(model).branch.gate
    assert isinstance(gate, SelfActivated)
    keys = bank.view()["A"]
    w = gate.mix(gate.score(x[tokens] @ keys.T, x[tokens], bank.view()), (16,), prune=True)
    assert whole.means()["active_atoms"] == pytest.approx([float((w > 1e-3).sum(-1).float().mean())])
    assert whole.means()["pass_rate"] == pytest.approx([float((w > 0).any(-1).float().mean())])
