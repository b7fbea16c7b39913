"""SEMA: adapters beside the MLP, descriptors, the scan, growth on demand; on plain modules and on a toy of domains."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import domains
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    Gemma3TextConfig,
    Gemma3TextModel,
    GemmaConfig,
    GemmaModel,
    GPT2Config,
    GPT2Model,
    LlamaConfig,
    LlamaModel,
    Qwen3Config,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
    ViTConfig,
    ViTModel,
)

from rankwise.adapters import Change, adapter_of, banks_of, grow, using
from rankwise.adapters.probes import mean_tokens
from rankwise.api import adapt, export, load, merge, save
from rankwise.errors import UsageError
from rankwise.learning.learner import Learner
from rankwise.papers.sema import ADAPT, ANSWER, DESCRIBE, Expansion, ExpansionSettings
from rankwise.papers.sema.branch import DESCRIPTOR, Modular
from rankwise.seeds import generator

WIDTH: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24}
TEXT: dict[str, Any] = {**WIDTH, "vocab_size": 20}
KV: dict[str, Any] = {**TEXT, "num_key_value_heads": 1, "head_dim": 8}
IMAGE: dict[str, Any] = {**WIDTH, "image_size": 8, "patch_size": 4}
T5: dict[str, Any] = {"d_model": 16, "d_ff": 24, "num_layers": 3, "num_heads": 2, "d_kv": 8, "vocab_size": 20}
MODELS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "vit": (lambda: ViTModel(ViTConfig(**IMAGE), add_pooling_layer=False), "layers"),
    "clip": (lambda: CLIPVisionModel(CLIPVisionConfig(**IMAGE)), "encoder.layers"),
    "llama": (lambda: LlamaModel(LlamaConfig(**TEXT)), "layers"),
    "qwen": (lambda: Qwen3Model(Qwen3Config(**KV)), "layers"),
    "gemma": (lambda: GemmaModel(GemmaConfig(**KV)), "layers"),
    "gemma3": (lambda: Gemma3TextModel(Gemma3TextConfig(**KV)), "layers"),
    "gpt2": (lambda: GPT2Model(GPT2Config(n_embd=16, n_layer=3, n_head=2, vocab_size=20)), "h"),
    "t5": (
        lambda: T5EncoderModel(T5Config(d_model=16, d_ff=24, num_layers=3, num_heads=2, d_kv=8, vocab_size=20)),
        "encoder.block",
    ),
}
"""Architecture -> how it is made, and where its blocks lie."""


def randn(*shape: int, key: str) -> Tensor:
    return torch.randn(*shape, generator=generator(0, key))


def made(kind: str) -> nn.Module:
    torch.manual_seed(0)
    return (MODELS[kind][0] if kind in MODELS else lambda: BertModel(BertConfig(**TEXT)))().eval()


def fed(kind: str) -> dict[str, Tensor]:
    if kind in ("vit", "clip"):
        return {"pixel_values": randn(4, 3, 8, 8, key="pixels")}
    return {"input_ids": torch.randint(0, 20, (4, 6), generator=generator(0, "ids"))}


def vit(blocks: int = 1, **form: Any) -> nn.Module:
    """Return a vision transformer whose adapters all write something; the last is live."""
    model = adapt(made("vit"), "sema", rank=3, form={"expandable": 2, "latent": 5, **form})
    for label in range(2, blocks + 1):
        move(model)
        grow(model, [Change("freeze"), Change("append", str(label), 3)], 0)
    move(model)
    return model.eval()


def move(model: nn.Module) -> None:
    for name, (_, bank) in banks_of(model).items():
        for key in ("up", "up_bias"):
            nn.init.normal_(bank.live[key], generator=generator(0, key, name, *bank.labels))


def states(model: nn.Module, **context: Any) -> Tensor:
    with torch.no_grad(), using(model, **context):
        return model(**fed("vit")).last_hidden_state


def form_of(model: nn.Module) -> Modular:
    form = adapter_of(model).branch
    assert isinstance(form, Modular)
    return form


@pytest.mark.parametrize("kind", MODELS)
def test_a_span_reads_the_residual_stream_and_adds_to_it(kind):
    model = adapt(made(kind), "sema", rank=3)
    assert [site.behind for site, _ in banks_of(model).values()] == [2, 1, 0]
    site, bank = list(banks_of(model).values())[1]
    nn.init.normal_(bank.live["up"], generator=generator(0, "up"))
    seen: list[Tensor] = []
    block = model.get_submodule(f"{MODELS[kind][1]}.1")
    block.register_forward_hook(lambda module, args, out: seen.append(out if isinstance(out, Tensor) else out[0]))
    norm = model.get_submodule(site.reads)
    norm.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        model(**fed(kind))
        with using(model, blocks=()):
            model(**fed(kind))
        x, moved, same, held = seen
        assert torch.equal(x, same)
        added = form_of(model).delta(x, x, bank.view(), adapter_of(model).context, site, norm, False)
    assert added.abs().max() > 1e-3
    torch.testing.assert_close(moved - held, added, rtol=1e-4, atol=1e-5)


def test_in_bert_it_adds_to_the_sum_before_the_norm():
    model = adapt(made("bert"), "sema", rank=3)
    site, bank = list(banks_of(model).values())[0]
    nn.init.normal_(bank.live["up_bias"], generator=generator(0, "up"))
    seen: list[Tensor] = []
    model.get_submodule("encoder.layer.0.output.LayerNorm").register_forward_pre_hook(
        lambda module, args: seen.append(args[0])
    )
    with torch.no_grad():
        model(**fed("bert"))
        with using(model, blocks=()):
            model(**fed("bert"))
    torch.testing.assert_close(seen[0] - seen[1], bank.live["up_bias"][0].detach().expand_as(seen[0]))
    assert site.reads == "encoder.layer.0.intermediate.dense"


def test_a_model_without_spans_is_refused():
    with pytest.raises(UsageError, match="mlp-span.*no module is left"):
        adapt(nn.Sequential(nn.Linear(3, 3)), "sema")


def test_only_the_last_blocks_have_routers_and_descriptors():
    model = vit(expandable=2)
    held = [set(bank.specs) for _, bank in banks_of(model).values()]
    assert "router" not in held[0] and not held[0] & set(DESCRIPTOR)
    assert all(set(DESCRIPTOR) | {"router", "router_bias"} <= names for names in held[1:])
    for site, bank in banks_of(model).values():
        more = (5 + 1) * (2 * 16 + 1) if form_of(model).expands(site) else 0
        assert sum(bank.tensor(name).numel() for name in bank.specs) == 3 * (16 + 16 + 1) + 16 + more


def test_a_fresh_adapter_changes_no_bit():
    with torch.no_grad():
        before = made("vit")(**fed("vit")).last_hidden_state
    assert torch.equal(states(adapt(made("vit"), "sema", rank=3)), before)


def test_the_update_is_the_mixture_of_bottlenecks_weighed_by_the_mean_token():
    model = vit(3)
    site, bank = list(banks_of(model).values())[-1]
    x = randn(4, 7, 16, key="x")
    with torch.no_grad():
        found = form_of(model).delta(x, x, bank.view(), adapter_of(model).context, site, model, False)
    for i in range(4):
        scores = bank.tensor("router") @ x[i].mean(0) + bank.tensor("router_bias")
        expected = torch.zeros(7, 16)
        for k, w in enumerate(scores.softmax(0)):
            part = slice(3 * k, 3 * k + 3)
            hidden = (x[i] @ bank.tensor("down")[part].T + bank.tensor("down_bias")[part]).relu()
            expected += w * (hidden @ bank.tensor("up")[:, part].T + bank.tensor("up_bias")[k])
        torch.testing.assert_close(found[i], expected.detach(), rtol=1e-4, atol=1e-5)
    w = form_of(model).mixture(x, bank.view(), None)
    assert w.shape == (4, 3)
    torch.testing.assert_close(w.sum(-1), torch.ones(4))


def test_padding_has_no_part_in_the_mean_token():
    x, tokens = randn(3, 5, 4, key="x"), torch.ones(3, 5, dtype=torch.bool)
    tokens[0, 2:] = False
    means = mean_tokens(x, tokens)
    torch.testing.assert_close(means[0], x[0, :2].mean(0))
    torch.testing.assert_close(means[1:], x[1:].mean(1))


def test_a_new_adapter_moves_the_output_by_its_share_of_the_mixture_alone():
    model = vit()
    before = states(model)
    grow(model, [Change("freeze"), Change("append", "2", 3)], 0)
    assert not torch.allclose(states(model), before, atol=1e-5)
    with torch.no_grad():
        for site, bank in banks_of(model).values():
            if form_of(model).expands(site):
                bank.live["router_bias"].fill_(-1e4)  # its weight in the mixture is 0
    torch.testing.assert_close(states(model), before, rtol=1e-6, atol=1e-6)


def test_descriptors_have_no_part_in_the_forward():
    model = vit(2)
    before = states(model)
    for _, bank in banks_of(model).values():
        for name in set(DESCRIPTOR) & set(bank.live):
            nn.init.normal_(bank.live[name])
    assert torch.equal(states(model), before)


def test_errors_are_mean_squares_of_a_linear_autoencoder():
    model = vit(2)
    _, bank = list(banks_of(model).values())[-1]
    z = randn(6, 16, key="z")
    with torch.no_grad():
        found = form_of(model).errors(bank.view(), z)
        for k in range(2):
            t = {name: bank.tensor(name)[k] for name in DESCRIPTOR}
            back = (z @ t["encoder"].T + t["encoder_bias"]) @ t["decoder"].T + t["decoder_bias"]
            torch.testing.assert_close(found[:, k], (back - z).square().mean(1))


def test_it_is_saved_with_its_spans_and_refuses_to_be_merged(tmp_path):
    model = vit(2)
    save(model, tmp_path / "a")
    back = load(made("vit"), tmp_path / "a")
    assert torch.equal(states(back), states(model)) and adapter_of(back).branch == adapter_of(model).branch
    assert [site for site, _ in banks_of(back).values()] == [site for site, _ in banks_of(model).values()]
    for leave in (lambda: merge(model), lambda: export(model, tmp_path / "peft")):
        with pytest.raises(UsageError, match="Modular: .*depends on the input"):
            leave()


def test_a_pair_beside_the_mlp_works_and_cannot_be_folded():
    model = adapt(made("vit"), "lora", rank=2, sites="mlp-span")
    _, bank = list(banks_of(model).values())[0]
    before = states(model)
    nn.init.normal_(bank.live["B"])
    assert not torch.allclose(states(model), before)
    with pytest.raises(UsageError, match="stands beside 'layers.0.mlp.fc2' and reads elsewhere"):
        merge(model)


def test_sites_without_a_feature_row_are_refused():
    with pytest.raises(UsageError, match="of kind 'embedding'"):
        adapt(nn.Sequential(nn.Embedding(5, 4)), "sema", sites="0")


# The dynamics, on plain tensors.


def surprise(records: Tensor, **settings: Any) -> Tensor:
    """Return the z-scores of fresh inputs for one descriptor with these records."""
    model = vit()
    (name, (_, bank)) = list(banks_of(model).items())[-1]
    part = Expansion(ExpansionSettings(**settings))
    part.records[f"{name}/1"] = records
    with torch.no_grad():
        return part.surprise(form_of(model), name, bank, randn(400, 16, key="fresh"))[:, 0]


def errors_of(key: str) -> Tensor:
    model = vit()
    _, bank = list(banks_of(model).values())[-1]
    with torch.no_grad():
        return form_of(model).errors(bank.view(), randn(500, 16, key=key))[:, 0]


def test_the_same_distribution_has_a_mean_score_of_about_four_fifths():
    assert 0.6 < float(surprise(errors_of("same")).mean()) < 1.0


def test_too_few_records_judge_nothing_and_a_perfect_fit_has_a_floor():
    assert not surprise(errors_of("same")[:2]).any() and surprise(errors_of("same")[:3]).any()
    flat = surprise(torch.full((500,), 0.5))
    assert flat.isfinite().all() and flat.min() > 1e3


# Runs on the toy of domains.

DYNAMICS = {"threshold": 12.0, "scan_batch": 64, "descriptor_share": 3.0, "descriptor_lr": 0.03}
ADAPTER = {"rank": 4, "form": {"expandable": 2, "latent": 4}, "dynamics": DYNAMICS}
SPANS = [f"layers.{i}.mlp.fc2.span" for i in range(3)]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return domains.base(tmp_path_factory.mktemp("base") / "vit")


@pytest.fixture(scope="module")
def learnt(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Learner, Path, list[tuple[str, str | None]]]:
    """Learn A, B and A' (new classes on the domain of A); return the phases too, each with the site it added."""
    out, phases = tmp_path_factory.mktemp("run") / "run", []
    made = domains.learner(
        base, "sema", domains.stream(("A", "B", "A'")), adapter=ADAPTER, train={"batch_size": 16, "lr": 1e-2}
    )
    enter = made.enter_phase

    def noted(phase: Any) -> None:
        phases.append((phase.name, phase.changes[-1].site if phase.changes else None))
        enter(phase)

    made.enter_phase = noted  # pyright: ignore[reportAttributeAccessIssue]
    domains.learn(made, out)
    return made, out, phases


def test_new_adapters_come_where_the_domain_is_new_and_nowhere_else(learnt):
    made, _, phases = learnt
    labels = {name: bank.labels for name, (_, bank) in banks_of(made.model).items()}
    assert labels == {SPANS[0]: ("A",), SPANS[1]: ("A", "B"), SPANS[2]: ("A", "B")}
    added = [(ADAPT, site) for site in SPANS[1:]]  # the shallower of two surprised blocks first
    described = [(DESCRIBE, None)]
    assert phases == [(ADAPT, None), *described, added[0], *described, added[1], *described, (ANSWER, None)]


def test_what_was_learnt_before_stays_to_the_bit(learnt):
    _, out, _ = learnt
    first, second, third = domains.task_ends(out)
    assert not any("/live." in name for name in first if name.startswith("sites/"))
    for name in (name for name in first if name.startswith("sites/")):
        bank = SPANS.index(name.split("/")[1])
        dim = {"up": 1}.get(name.rpartition(".")[2], 0)
        now = second[name].narrow(dim, 0, first[name].shape[dim])
        assert torch.equal(now, first[name]), name
        assert (second[name].shape[dim] > first[name].shape[dim]) is (bank > 0)
    held = [name for name in second if name.startswith(("sites/", "strategies/"))]
    changed = {name for name in held if not torch.equal(third[name], second[name])}
    assert changed <= {"strategies/sema/place"}  # a task without expansion changes the head alone
    assert any(name.startswith("head/") and third[name].shape != second[name].shape for name in third)
    for name in (name for name in first if name.startswith("strategies/sema/layers")):
        assert torch.equal(second[name], first[name]) and torch.equal(third[name], first[name])


def test_old_class_rows_do_not_move(learnt):
    _, out, _ = learnt
    first, _, third = domains.task_ends(out)
    rows = torch.cat([first[f"head/{half}.weight"] for half in ("frozen", "live") if f"head/{half}.weight" in first])
    assert torch.equal(third["head/frozen.weight"][: len(rows)], rows)


def test_records_hold_the_last_errors_of_training(learnt):
    made, _, _ = learnt
    part = part_of(made)
    assert set(part.records) == {f"{site}/{label}" for site in SPANS[1:] for label in ("A", "B")}
    assert all(errors.shape == (500,) and errors.isfinite().all() for errors in part.records.values())


def test_a_scan_changes_nothing_and_uses_no_labels(learnt):
    made, _, _ = learnt
    task = domains.task(3, "D", {"train": 40, "validation": 4, "test": 4}, 0)
    part, before = part_of(made), made.state()[0]
    part.place = 0
    site = part.scan(made, task)
    wrong = replace(task, train=replace(task.train, labels=task.train.labels.flip(0)))
    part.place = 0
    assert part.scan(made, wrong) == site == SPANS[1]
    after = made.state()[0]
    part.place = 0
    assert all(torch.equal(after[name], before[name]) for name in before if not name.endswith("/place"))


def test_a_higher_threshold_never_adds_more(learnt):
    made, _, _ = learnt
    part, before = part_of(made), part_of(made).settings
    fired = []
    for threshold in (1e-3, 2.0, 12.0, 1e6):
        part.settings = replace(before, threshold=threshold)
        part.place = 0
        fired.append([part.scan(made, replace(task, name="new")) is not None for task in made.tasks])
        part.place = 0
    part.settings = before
    assert fired[0] == [True] * 3 and fired[-1] == [False] * 3 and fired[2] == [False] * 3
    assert all(
        high <= low for one, two in zip(fired, fired[1:], strict=False) for low, high in zip(one, two, strict=True)
    )


def test_a_scan_goes_on_after_the_batch_that_fired_and_then_over_all_of_them(learnt, monkeypatch):
    made, _, _ = learnt
    part = part_of(made)
    task = domains.task(3, "D", {"train": 75, "validation": 4, "test": 4}, 0)  # 150 rows: two batches, 64 and 86
    rows = torch.zeros(150, 4)
    monkeypatch.setattr(part, "deviations", lambda host, batch, sites: rows[batch.ids])
    part.place = 0
    rows[64:, 2:] = 50.0  # the second batch, at the deeper site, for both of its descriptors
    assert part.scan(made, task) == SPANS[2] and part.place == 2
    rows[:] = 0
    rows[:64, :2] = 50.0  # now the first batch, met again in the next pass
    assert part.scan(made, task) == SPANS[1] and part.place == 1
    rows[:64, 0] = 0.0  # one descriptor knows it
    assert part.scan(made, task) is None
    part.place = 0


def part_of(made: Learner) -> Expansion:
    part = made.strategies[-1]
    assert isinstance(part, Expansion)
    return part


def short(base: Path, **tables: Any) -> Callable[[], Learner]:
    """Return what makes a learner whose every block expands in every task, of few steps."""
    adapter = {**ADAPTER, "dynamics": {**DYNAMICS, "threshold": 1e-9, "descriptor_share": 1.0}}
    train = {"steps": 3, "batch_size": 8, "snapshot_seconds": 0, "lr": 1e-2, **tables}
    return lambda: domains.learner(base, "sema", domains.stream(("A", "B"), train=16), adapter=adapter, train=train)


def test_each_block_expands_at_most_once_a_task(base, tmp_path):
    made = short(base)()
    domains.learn(made, tmp_path / "run")
    assert [bank.labels for _, bank in banks_of(made.model).values()] == [("A",), ("A", "B"), ("A", "B")]


def test_a_run_stopped_in_any_phase_ends_as_if_it_had_not_been(base, tmp_path):
    make = short(base, optimizer="sgd", momentum=0.9)
    whole = domains.learn(make(), tmp_path / "whole")
    parts, sittings = domains.in_sittings(make, tmp_path / "parts", 2)
    assert sittings > 6 and parts.rows == whole.rows and parts.validation == whole.validation
    for one, two in zip(domains.task_ends(tmp_path / "whole"), domains.task_ends(tmp_path / "parts"), strict=True):
        assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_records_do_not_depend_on_how_a_batch_is_cut(base, tmp_path):
    one, two = (short(base, accumulate=count)() for count in (1, 3))
    for name, made in (("one", one), ("two", two)):
        domains.learn(made, tmp_path / name)
    for key, errors in part_of(one).records.items():
        torch.testing.assert_close(part_of(two).records[key], errors, rtol=1e-3, atol=1e-5)


def test_phase_r_moves_descriptors_alone(base, tmp_path):
    made = short(base)()
    with pytest.raises(domains.Stop):
        domains.learn(made, tmp_path / "run", domains.Stopping(5))
    assert made.phase.name == DESCRIBE
    names = {name.rpartition(".")[2] for name in made.live()}
    assert names == set(DESCRIPTOR)
    assert all(group["peak"] == DYNAMICS["descriptor_lr"] for rule in made.optimizers for group in rule.param_groups)


def test_a_run_saves_its_adapter(digits):
    run = digits("sema", adapter={"rank": 2, "form": {"expandable": 1, "latent": 4}})
    held = load_file(str(run.path / "adapter" / "adapter.safetensors"))
    assert sum(name.endswith(".router") for name in held) == 1
    assert sum(name.endswith(".down") for name in held) == len(banks_of(run.model))
