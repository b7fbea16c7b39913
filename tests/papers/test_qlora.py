"""QLoRA: the base computes with 4-bit weights that stay as they are, and an adapter learns over them."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from digit_runs import read_json
from torch import nn

import rankwise
from rankwise import saved
from rankwise.adapters import banks_of, bare, pick_sites, read_weight
from rankwise.api import adapt, load, merge, save
from rankwise.errors import ConflictError, DataError, UsageError
from rankwise.models import dequantise, fingerprint, load_backbone, quantise, quantised

needed = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes (extra `quant`) is not installed"
)


def base() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(96, 64), nn.LayerNorm(64), nn.Linear(64, 80, bias=False))
    return model.requires_grad_(False)


def four_bits() -> nn.Module:
    model = base()
    quantise(model)
    return model


@needed
def test_linear_weights_are_held_in_4_bits_and_the_rest_as_it_was():
    plain, four = base(), four_bits()
    assert four[0].weight.dtype == torch.uint8 and four[0].weight.numel() == 96 * 64 // 2  # pyright: ignore[reportIndexIssue]
    assert torch.equal(four[0].bias, plain[0].bias) and type(four[1]) is nn.LayerNorm  # pyright: ignore[reportIndexIssue]
    x = torch.randn(5, 96)
    wanted, found = plain(x), four(x)
    assert 0.01 < (found - wanted).norm() / wanted.norm() < 0.2
    assert fingerprint(four_bits()) == fingerprint(four) != fingerprint(plain)


@needed
def test_weights_are_read_off_what_the_module_does():
    from bitsandbytes.functional import dequantize_4bit

    for site in pick_sites(four := four_bits()):
        module = four.get_submodule(site.path)
        wanted = dequantize_4bit(module.weight.data, module.weight.quant_state)
        torch.testing.assert_close(read_weight(module, site), wanted, rtol=1e-5, atol=1e-6)


@needed
def test_an_output_head_stays_as_it_is():
    model = nn.ModuleDict({"body": nn.Linear(64, 64), "lm_head": nn.Linear(64, 64)})
    quantise(model)
    assert type(model["lm_head"]) is nn.Linear and type(model["body"]) is not nn.Linear


@needed
@pytest.mark.parametrize("method", ["lora", "dora", "hira", "mora"])
def test_adapters_learn_over_it_and_leave_its_bits(method, tmp_path):
    model = adapt(four_bits(), method, rank=2)
    with bare(model):
        before = fingerprint(model)
    rule = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    x, y = torch.randn(16, 96), torch.randn(16, 80)
    for _ in range(3):
        rule.zero_grad()
        (model(x) - y).square().mean().backward()
        rule.step()
    with bare(model):
        assert fingerprint(model) == before
    save(model, tmp_path / "adapter")
    back = load(four_bits(), tmp_path / "adapter").eval()
    assert torch.equal(back(x), model.eval()(x))


@needed
def test_it_merges_into_the_dequantised_weights():
    model = adapt(four_bits(), "lora", rank=2)
    with torch.no_grad():
        for _, bank in banks_of(model).values():
            bank.live["B"].normal_()
    x = torch.randn(5, 96)
    wanted = model(x)
    with pytest.raises(UsageError, match="unquantised"):
        merge(model)
    dequantise(model)
    torch.testing.assert_close(model(x), wanted, rtol=1e-4, atol=1e-4)
    plain = merge(model)
    assert {type(module) for module in plain.children()} == {nn.Linear, nn.LayerNorm}
    torch.testing.assert_close(plain(x), wanted, rtol=1e-4, atol=1e-4)
    assert not any(p.requires_grad for p in plain.parameters())


@needed
def test_a_run_over_it_learns_says_so_and_merges(digits, tmp_path):
    run = digits("qlora", stream={"first_tasks": 1}, train={"steps": 20})
    matrix = run.results["matrix"]
    assert matrix[0][0] > 0.6
    record = read_json(run.path, "environment.json")["base"]
    assert record["quantize"] == "nf4" and record["fingerprint"] != load_backbone("embedded:vit").fingerprint
    assert record["fingerprint"] == quantised(load_backbone("embedded:vit"), "nf4").fingerprint
    written = saved.merge_saved(run.path / "adapter", tmp_path / "merged")
    back = load_backbone(written["out"])
    images = torch.randint(0, 255, (3, 8, 8), dtype=torch.uint8)
    with torch.no_grad():
        torch.testing.assert_close(
            back.module(**back.encode(images)).last_hidden_state,
            run.model.eval()(**back.encode(images)).last_hidden_state,
            rtol=1e-3,
            atol=1e-3,
        )


@pytest.mark.parametrize(
    ("method", "adapter", "said"),
    [
        ("finetune", {}, "method 'finetune', whose base learns"),
        ("osft", {}, "adapter.init = 'osft', which takes what a block starts with out of the base"),
        ("lora", {"init": "pissa"}, "adapter.init = 'pissa', which takes"),
        ("codyra", {}, "dynamics 'codyra', which fold blocks into the base"),
        ("lora", {"dynamics": {"kind": "relora"}}, "dynamics 'relora', which fold blocks into the base"),
    ],
)
def test_a_base_that_changes_is_refused(method, adapter, said, tmp_path, monkeypatch):
    from rankwise import api

    monkeypatch.setattr(api, "load_backbone", lambda *args, quantize=None, **kw: load_backbone(*args, **kw))
    base = {"name": "embedded:vit", "quantize": "nf4"}
    config = {"method": method, "model": base, "stream": {"name": "digits"}, "adapter": adapter}
    with pytest.raises(ConflictError, match=f"quantize = .nf4. and {said}.*remove model.quantize"):
        rankwise.run(config, out=tmp_path / "run")


def test_without_the_extra_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"pip install rankwise\[quant\]"):
        quantise(base())
    with pytest.raises(UsageError, match="nf4"):
        quantise(base(), "int3")
