"""SEMA's branch: adapters beside the MLP, mixed by a router, and their descriptors; on small models."""

from __future__ import annotations

import pytest
import torch
from span_models import MODELS, fed, form_of, made, randn, states, vit
from torch import Tensor, nn

from rankwise.adapters import Change, adapter_of, banks_of, grow, using
from rankwise.adapters.probes import mean_tokens
from rankwise.api import adapt, export, load, merge, save
from rankwise.errors import UsageError
from rankwise.papers.sema.branch import DESCRIPTOR
from rankwise.seeds import generator


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
