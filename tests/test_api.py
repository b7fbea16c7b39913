"""The verbs on a model: adapt, save, load, merge, export, methods; runs have tests of their own."""

from __future__ import annotations

import subprocess
import sys
import time
import warnings

import peft
import pytest
import tiny
import torch
from torch import nn

import rankwise
from rankwise.adapters import Change, adapter_of, banks_of, grow, is_adapted
from rankwise.errors import ConflictError, RankwiseError, StorageError, UsageError


def test_every_public_name_is_there_and_unknown_ones_are_refused():
    for name in rankwise.__all__:
        assert getattr(rankwise, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'adept'"):
        _ = rankwise.adept  # pyright: ignore[reportAttributeAccessIssue]


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, rankwise; print([m for m in ('torch', 'transformers', 'datasets') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_methods_are_records_of_plain_values():
    records = {record["slug"]: record for record in rankwise.methods()}
    assert {"lora", "lora-append", "mora"} <= set(records)
    for record in records.values():
        assert set(record) == {
            *("slug", "title", "paper", "axis", "identity_at_creation", "identity_at_append", "mergeable", "peft"),
            *("parameters", "refuses"),
        }
    assert records["mora"]["mergeable"] is False and records["mora"]["peft"] is None
    assert records["lora"]["peft"] == "exact"


@pytest.mark.parametrize("method", ["lora", "lora-append", "mora"])
def test_adapt_returns_the_base_with_one_learning_block(method):
    base, batch = tiny.llama(), tiny.fed("llama")
    before = tiny.logits(base, batch)
    model = rankwise.adapt(base, method, rank=3, sites=["q_proj", "v_proj"], seed=5)
    assert model is base
    assert {n.split(".")[3] for n, p in model.named_parameters() if p.requires_grad} == {"self_attn"}
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 2 * 3 * ((12 + 12) + (12 + 6))
    assert adapter_of(model).record == {"method": method, "seed": 5}
    assert torch.equal(tiny.logits(model, batch), before)


def test_starting_values_are_a_function_of_the_seed():
    def start(seed: int) -> torch.Tensor:
        return banks_of(rankwise.adapt(tiny.mlp(), rank=2, seed=seed))["0"][1].tensor("A")

    assert torch.equal(start(0), start(0)) and not torch.equal(start(0), start(1))


def test_adapt_takes_the_fields_of_the_adapter_table():
    model = rankwise.adapt(
        tiny.llama(), sites="q_proj", layers=[1, 1], scale=2.5, dropout=0.1, init="orthogonal", exclude=["k_proj"]
    )
    assert list(banks_of(model)) == ["model.layers.1.self_attn.q_proj"]
    branch = adapter_of(model).branch
    assert (branch.scale, branch.dropout, branch.init.name) == (2.5, 0.1, "orthogonal")
    a = banks_of(model)["model.layers.1.self_attn.q_proj"][1].tensor("A")
    assert torch.allclose(a @ a.T, torch.eye(8), atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "mroa"}, "did you mean 'mora'"),
        ({"method": "joint"}, None),
        ({"method": "linear-probe"}, "has no adapter to put on a model"),
        ({"method": "finetune"}, "has no adapter to put on a model"),
        ({"rank": 0}, "rank = 0"),
        ({"rank": 2.5}, "rank = 2.5"),
        ({"scale": 0.0}, "scale = 0.0"),
        ({"dropout": 1.0}, "dropout = 1.0"),
        ({"alpha": 16}, "unknown key 'alpha'"),
        ({"init": "gausian"}, "did you mean 'gaussian'"),
        ({"sites": "q_proj"}, "matches no module"),
        ({"layers": [1]}, "layers"),
        ({"growth": "append"}, "growth belongs to a run"),
        ({"dynamics": {"kind": "altlora"}}, "dynamics act in rankwise.run"),
        ({"gate": {"top_k": 2}}, "unknown key 'top_k'"),
        ({"method": "mora", "gate": {"top_kk": 2}}, "did you mean 'top_k'"),
        ({"method": "mora", "gate": {"temperature": -1.0}}, "temperature"),
        ({"data": [1]}, "does not start from data"),
    ],
)
def test_wrong_arguments_are_refused_and_leave_the_base_alone(arguments, message):
    base = tiny.mlp()
    if message is None:
        assert is_adapted(rankwise.adapt(base, **arguments))
        return
    with pytest.raises(UsageError, match=message):
        rankwise.adapt(base, **arguments)
    assert not is_adapted(base)
    assert all(parameter.requires_grad for parameter in base.parameters())


def test_adapt_refuses_a_second_adapter_and_a_bare_layer():
    with pytest.raises(ConflictError, match="carries an adapter already"):
        rankwise.adapt(rankwise.adapt(tiny.mlp()), sites="0")
    with pytest.raises(UsageError, match="wrap it"):
        rankwise.adapt(nn.Linear(2, 2))


@pytest.mark.parametrize("verb", [rankwise.adapt, lambda base: rankwise.load(base, "x")])
def test_what_is_no_base_is_refused_with_the_remedy(verb):
    with pytest.raises(UsageError, match="must be a torch module, not 'gpt2'; load it first"):
        verb("gpt2")
    theirs = peft.get_peft_model(tiny.mlp(), peft.LoraConfig(target_modules=["0"]))
    for model in (theirs, theirs.base_model.model):
        with pytest.raises(ConflictError, match=r"merge_and_unload\(\).*rankwise\.load"):
            verb(model)
    assert is_adapted(rankwise.adapt(theirs.merge_and_unload()))


def test_a_config_that_is_none_is_refused():
    with pytest.raises(UsageError, match="path of a TOML file or a mapping, not 123"):
        rankwise.run(123)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("altlora", "its dynamics 'altlora' act in rankwise.run only"),
        ("ewc", "its strategies 'ewc' act in rankwise.run, or as far as they can through rankwise.learning"),
        ("i-lora", "its strategies 'replay', 'ema', 'consistency' act"),
    ],
)
def test_adapt_warns_of_what_a_module_alone_does_not_do(method, message):
    with pytest.warns(UserWarning) as found:
        rankwise.adapt(tiny.mlp(), method)
    assert len(found) == 1 and message in str(found[0].message) and found[0].filename == __file__


def test_the_dynamics_of_a_method_are_no_strategy_of_a_foreign_loop():
    model = rankwise.adapt(tiny.mlp(), rank=2)
    refused = pytest.raises(
        UsageError, match=r"'altlora' does not exist.*dynamics of a method act in rankwise\.run only"
    )
    with refused, rankwise.learning(model, "altlora", optimizer=torch.optim.SGD(model.parameters())):
        pass


@pytest.mark.parametrize("method", ["lora", "mora", "pissa", "allora"])
def test_adapt_warns_of_nothing_where_the_adapter_is_all(method):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rankwise.adapt(tiny.mlp(), method, rank=2)


def test_adapt_computes_nothing_heavy():
    base = nn.Sequential(nn.Linear(4096, 4096, device="meta"), nn.Linear(4096, 4096, device="meta"))
    started = time.process_time()
    rankwise.adapt(base, rank=1)
    assert time.process_time() - started < 2
    assert {p.device.type for p in base.parameters()} == {"meta"}


def test_merge_gives_the_base_back_with_the_update_in_it():
    model, batch = rankwise.adapt(tiny.gpt2(), rank=2, sites=["c_attn", "c_fc"]), tiny.fed("gpt2")
    tiny.wake(model)
    before = tiny.logits(model, batch)
    plain = rankwise.merge(model)
    assert plain is model and type(plain) is type(tiny.gpt2()) and not is_adapted(plain)
    assert list(plain.state_dict()) == list(tiny.gpt2().state_dict())
    assert torch.allclose(tiny.logits(plain, batch), before, rtol=1e-5, atol=1e-6)


def test_merge_of_named_blocks_leaves_the_others_out():
    model, x = rankwise.adapt(tiny.mlp(), rank=2), tiny.fed("mlp")["input"]
    grow(model, [Change("append", "2", 1)], 0)
    tiny.wake(model)
    one = rankwise.adapt(tiny.mlp(), rank=2)
    for name, (_, bank) in banks_of(one).items():
        other = banks_of(model)[name][1].view(["1"])
        with torch.no_grad():
            bank.live["A"].copy_(other["A"])
            bank.live["B"].copy_(other["B"])
    expected = one(x)
    with pytest.raises(UsageError, match="no block '3' to fold"):
        rankwise.merge(model, blocks=["3"])
    assert is_adapted(model)
    assert torch.allclose(rankwise.merge(model, blocks=["1"])(x), expected, atol=1e-6)


def test_what_cannot_be_merged_says_why_and_stays_adapted():
    model = rankwise.adapt(tiny.mlp(), "mora", rank=2)
    with pytest.raises(UsageError, match="depends on the input"):
        rankwise.merge(model)
    assert is_adapted(model)
    for verb in (rankwise.merge, lambda m: rankwise.save(m, "x"), lambda m: rankwise.export(m, "x")):
        with pytest.raises(UsageError, match=r"call rankwise\.adapt"):
            verb(tiny.mlp())


def test_save_names_the_base_under_the_adapter(tmp_path):
    model = rankwise.adapt(tiny.mlp())
    tiny.wake(model)
    rankwise.save(model, tmp_path / "a")
    assert is_adapted(model)
    assert torch.equal(rankwise.load(tiny.mlp(), str(tmp_path / "a"))(torch.ones(1, 5)), model(torch.ones(1, 5)))
    grow(model, [Change("fold", "1"), Change("append", "2", 1)], 0)
    rankwise.save(model, tmp_path / "b")
    with pytest.raises(StorageError, match="fingerprint"):
        rankwise.load(tiny.mlp(), tmp_path / "b")


def test_save_replaces_its_own_folders_only(tmp_path):
    model = rankwise.adapt(tiny.mlp())
    for _ in range(2):
        rankwise.save(model, tmp_path / "a")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(RankwiseError):
        rankwise.save(model, tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "x"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"strategy": [{"kind": "replai"}]}, "strategy 'replai' does not exist; did you mean 'replay'?"),
        ({"strategy": [{"kind": "replay", "sise": 3}]}, "strategy 'replay': unknown key 'sise'; did you mean 'size'?"),
        ({"strategy": [{"size": 3}]}, "strategy: 'kind' is missing"),
        ({"strategy": [{"kind": "replay"}, {"kind": "replay"}]}, "names a kind twice"),
        ({"adapter": {"init": "pisa"}}, "adapter.init = 'pisa': no such init; did you mean 'pissa'?"),
        ({"adapter": {"dynamics": {"kind": "altlor"}}}, "did you mean 'altlora'?"),
        ({"method": "lora", "adapter": {"dynamics": {"ridge": 1.0}}}, "method 'lora' has none of its own"),
        ({"method": "loha", "adapter": {"form": {"rnk": 1}}}, "adapter.form of method 'loha': unknown key 'rnk'"),
    ],
)
def test_a_wrong_part_is_named_with_key_value_and_remedy(config, message):
    from rankwise.api import parts_of, resolve

    with pytest.raises(UsageError) as raised:
        parts_of(*resolve(config))
    assert message in str(raised.value)


def test_parts_of_several_methods_make_one_recipe():
    from rankwise.api import branch_of, parts_of, resolve

    config, method = resolve(
        {
            "method": "lora-append",
            "adapter": {"init": "pissa", "dynamics": {"kind": "altlora"}},
            "strategy": [{"kind": "replay", "size": 9}],
        }
    )
    assert branch_of(method, config.adapter).init.residual
    assert {part.name for part in parts_of(config, method)} == {"replay", "altlora"}
    assert resolve(config.model_dump(exclude_none=True))[0] == config  # complete, and the same when read again
