"""The pair with magnitudes: the same bits when it is new, row lengths as it says, PEFT's gradients, an exact merge."""

from __future__ import annotations

import pytest
import tiny  # pyright: ignore[reportMissingImports]
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

import rankwise
from rankwise.adapters import Change, adapter_of, banks_of, bare, grow, read_weight
from rankwise.adapters.dora import MAGNITUDE
from rankwise.adapters.model import adapted_modules
from rankwise.errors import UsageError
from rankwise.models import fingerprint

SITES = {
    "llama": ["q_proj", "embed_tokens"],
    "gpt2": ["c_attn.q", "c_attn.v", "c_fc"],
    "dense": ["words", "conv", "fc"],
}


def adapted(name: str, blocks: int = 1, awake: bool = True) -> nn.Module:
    model = rankwise.adapt(tiny.MODELS[name](), "dora", rank=3, sites=SITES[name], scale=0.7)
    for number in range(1, blocks):
        grow(model, [Change("freeze"), Change("append", f"t{number}", number + 1)], 0)
    if awake:
        tiny.wake(model)
    return model


@pytest.mark.parametrize("name", SITES)
def test_a_new_adapter_and_a_new_block_change_no_bit(name):
    model, batch = adapted(name, awake=False), tiny.fed(name)
    assert torch.equal(tiny.logits(model, batch), tiny.logits(tiny.MODELS[name](), batch))
    tiny.wake(model)
    before = tiny.logits(model, batch)
    grow(model, [Change("freeze"), Change("append", "next", 2)], 0)
    assert torch.allclose(tiny.logits(model, batch), before, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize("name", SITES)
def test_rows_have_the_learned_lengths_and_a_merge_computes_the_same(name, blocks):
    model, batch = adapted(name, blocks), tiny.fed(name)
    expected = tiny.logits(model, batch)
    sites = [(m, site, bank) for m in adapted_modules(model).values() for site, bank in m.pairs()]
    lengths = [read_weight(m.base, s).norm(dim=1) + bank.tensor(MAGNITUDE).sum(0) for m, s, bank in sites]
    bases = [(m.base, s) for m, s, _ in sites]
    merged = tiny.logits(rankwise.merge(model), batch)
    assert float((merged - expected).abs().max() / expected.abs().max()) < 1e-5
    for (base, site), length in zip(bases, lengths, strict=True):
        assert torch.allclose(read_weight(base, site).norm(dim=1), length.abs(), rtol=1e-5, atol=1e-5)


def gradients(model: nn.Module, batch: dict[str, Tensor]) -> None:
    tiny.forward(model, batch).square().mean().backward()


def test_gradients_are_pefts():
    torch.manual_seed(0)
    other = get_peft_model(
        tiny.llama(), LoraConfig(r=3, lora_alpha=3, target_modules=["q_proj"], use_dora=True, init_lora_weights=False)
    )
    model = rankwise.adapt(tiny.llama(), "dora", rank=3, sites=["q_proj"])
    theirs = dict(other.named_parameters())
    with torch.no_grad():
        for name, (site, bank) in banks_of(model).items():
            for factor in "AB":
                bank.live[factor].copy_(theirs[f"base_model.model.{name}.lora_{factor}.default.weight"])
            length = read_weight(adapted_modules(model)[name].base, site).norm(dim=1)
            bank.live[MAGNITUDE].copy_(theirs[f"base_model.model.{name}.lora_magnitude_vector.default.weight"] - length)
    for each in (model, other):
        gradients(each.train(), tiny.fed("llama"))
    for name, (_, bank) in banks_of(model).items():
        for factor, word in (("A", "A.default"), ("B", "B.default"), (MAGNITUDE, "magnitude_vector.default")):
            expected = theirs[f"base_model.model.{name}.lora_{word}.weight"].grad
            found = bank.live[factor].grad
            assert expected is not None and found is not None and float(expected.abs().max()) > 0
            assert torch.allclose(found.flatten(), expected.flatten(), rtol=1e-4, atol=1e-7), (name, factor)


def test_it_survives_a_save_and_leaves_the_base_alone(tmp_path):
    model, batch = adapted("gpt2", 2), tiny.fed("gpt2")
    rankwise.save(model, tmp_path)
    loaded = rankwise.load(tiny.gpt2(), tmp_path)
    assert torch.equal(tiny.logits(loaded, batch), tiny.logits(model, batch))
    for adapted_model in (model, loaded):
        with bare(adapted_model) as base:
            assert fingerprint(base) == fingerprint(tiny.gpt2())


def test_some_of_its_blocks_cannot_be_folded():
    model, batch = adapted("llama", 2), tiny.fed("llama")
    before = tiny.logits(model, batch)
    with pytest.raises(UsageError, match=r"its blocks act together at '.*'; fold all or none"):
        rankwise.merge(model, blocks=["t1"])
    with pytest.raises(UsageError, match="full rank"):
        branch = adapter_of(model).branch
        branch.plain(*[(bank.view(), site) for site, bank in banks_of(model).values()][0])
    assert torch.equal(tiny.logits(model, batch), before)
