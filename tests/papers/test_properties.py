"""What every method promises of its adapter, one table for all: a method's file alone puts it in here."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import rankwise
from rankwise import papers
from rankwise.adapters import Change, Site, adapter_of, banks_of, bare, grow, using
from rankwise.api import adapt, export, load, merge, save
from rankwise.config import AdapterSettings
from rankwise.errors import UsageError
from rankwise.learning.recipe import Identities, Method
from rankwise.models import fingerprint
from rankwise.seeds import generator

RANK = 4
METHODS = [papers.method(slug) for slug in papers.slugs()]
ADAPTED = [method for method in METHODS if method.live == "adapter"]
GROWING = [method for method in ADAPTED if method.growth == "append"]
PEFT = [method for method in ADAPTED if method.peft in ("exact", "converted")]


def by_slug(method: Method) -> str:
    return method.slug


adapted = pytest.mark.parametrize("method", ADAPTED, ids=by_slug)


class Base(nn.Module):
    """A base with a site of every kind and one weight that is not a site's."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 12)
        self.hidden = nn.Linear(12, 16)
        self.norm = nn.LayerNorm(16)
        self.conv = nn.Conv2d(1, 5, 2)
        self.out = nn.Linear(16, 7, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        """Map token ids [N, S] to features [N, S, 7] plus the mean of a convolution over them."""
        x = self.out(self.norm(torch.tanh(self.hidden(self.embed(ids)))))
        return x + self.conv(x[:, None]).mean((2, 3)).mean(-1)[:, None, None]


SITES = ["embed", "hidden", "conv", "out"]


def base() -> Base:
    torch.manual_seed(0)
    return Base().eval()


def inputs() -> Tensor:
    return torch.randint(0, 11, (6, 9), generator=generator(0, "ids"))


def adapted_base(method: Method) -> nn.Module:
    return adapt(base(), method.slug, rank=RANK, sites=SITES)


def train(model: nn.Module, steps: int = 5, blocks: tuple[str, ...] | None = None, seed: int = 0) -> None:
    """Fit random targets, so that every live tensor moves."""
    target = torch.randn(6, 9, 7, generator=generator(seed, "target"))
    rule = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(steps):
        rule.zero_grad()
        with using(model.train(), blocks=blocks):
            (model(inputs()) - target).square().mean().backward()
        rule.step()
    model.eval()


def outputs(model: nn.Module, blocks: tuple[str, ...] | None = None) -> Tensor:
    with torch.no_grad(), using(model.eval(), blocks=blocks):
        return model(inputs())


def acting(method: Method, label: str) -> tuple[str, ...] | None:
    return (label,) if method.oracle else None


def next_block(model: nn.Module, label: str) -> None:
    grow(model, [Change("freeze"), Change("append", label, RANK)], 0)


def holds(identity: Identities, before: Tensor, after: Tensor) -> bool:
    """Say whether `after` differs from `before` as far as declared, and no less."""
    if identity == "exact":
        return torch.equal(before, after)
    close = torch.allclose(before, after, rtol=1e-5, atol=1e-6)
    return close if identity == "close" else not close


def test_the_table_holds_every_method_that_is_listed():
    assert {record["slug"] for record in rankwise.methods()} == {method.slug for method in METHODS}
    assert {method.slug for method in ADAPTED} >= {"mora", "lora", "lora-append", "independent", "joint", "replay"}


@pytest.mark.parametrize("method", METHODS, ids=by_slug)
def test_a_method_says_what_it_is(method):
    assert papers.method(method.slug) is method
    record = method.record()
    assert all(record[key] for key in ("slug", "title", "paper", "axis", "parameters"))
    assert "arXiv" in method.paper
    if method.live != "adapter":
        assert method.peft is None
    if not method.mergeable:
        assert any("merge" in reason for reason in method.refuses) and method.peft is None


@adapted
def test_a_fresh_adapter_leaves_the_output_as_declared(method):
    assert holds(method.identity_at_creation, base()(inputs()), outputs(adapted_base(method)))


@pytest.mark.parametrize("method", GROWING, ids=by_slug)
def test_an_appended_block_leaves_the_output_as_declared(method):
    model = adapted_base(method)
    for label in ("2", "3", "4"):
        train(model)
        grow(model, [Change("freeze")], 0)
        before = outputs(model, () if method.oracle else None)  # an oracle's new block acts alone, on the bare base
        grow(model, [Change("append", label, RANK)], 0)
        assert holds(method.identity_at_append, before, outputs(model, acting(method, label))), label


@adapted
def test_freezing_a_block_changes_the_function_by_rounding_at_most(method):
    """Frozen blocks lie in one tensor, so their sum may be taken in another order than before."""
    model = adapted_base(method)
    for label in ("2", "3"):
        train(model)
        before = outputs(model)
        grow(model, [Change("freeze")], 0)
        torch.testing.assert_close(outputs(model), before, rtol=1e-5, atol=1e-5)
        grow(model, [Change("append", label, RANK)], 0)


@adapted
def test_merging_gives_the_same_function_or_is_refused(method):
    model = adapted_base(method)
    train(model)
    next_block(model, "2")
    train(model)
    before = outputs(model)
    if not method.mergeable:
        with pytest.raises(UsageError, match="merge"):
            merge(model)
        assert torch.equal(outputs(model), before)
        return
    plain = merge(model)
    assert type(plain) is Base and {type(m) for m in plain.modules()} == {type(m) for m in base().modules()}
    torch.testing.assert_close(outputs(plain), before, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", [m for m in ADAPTED if m.mergeable], ids=by_slug)
def test_one_block_of_several_can_be_merged(method):
    model = adapted_base(method)
    train(model)
    next_block(model, "2")
    train(model)
    alone = outputs(model, ("1",))
    torch.testing.assert_close(outputs(merge(model, blocks=["1"])), alone, rtol=1e-5, atol=1e-5)


@adapted
def test_a_saved_adapter_comes_back_with_its_blocks(method, tmp_path):
    model = adapted_base(method)
    train(model)
    next_block(model, "2")
    train(model)
    save(model, tmp_path / "adapter")
    back = load(base(), tmp_path / "adapter")
    for blocks in (None, ("1",), ("2",), ()):
        torch.testing.assert_close(outputs(back, blocks), outputs(model, blocks), rtol=1e-6, atol=1e-6)
    assert adapter_of(back).branch == adapter_of(model).branch
    assert adapter_of(back).record["method"] == method.slug


@adapted
def test_what_is_frozen_stays_as_it_is_to_the_bit(method):
    model = adapted_base(method)
    with bare(model):
        before = fingerprint(model)
    train(model)
    next_block(model, "2")
    held = {name: copy.deepcopy(bank.frozen.tensors()) for name, (_, bank) in banks_of(model).items()}
    train(model, blocks=acting(method, "2"), seed=1)
    for name, (_, bank) in banks_of(model).items():
        frozen = bank.frozen.tensors()
        assert frozen and all(torch.equal(frozen[key], held[name][key]) for key in frozen), name
        assert not any(tensor.requires_grad for tensor in frozen.values())
    with bare(model):
        assert fingerprint(model) == before


@adapted
def test_after_the_first_step_all_that_is_live_has_finite_gradients_and_not_only_zeros(method):
    model = adapted_base(method)
    train(model, steps=1)
    model.train()(inputs()).square().mean().backward()
    live = [p for p in model.parameters() if p.requires_grad]
    assert len(live) == 2 * len(SITES)
    for parameter in live:
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.norm() > 0


def size_of(method: Method, site: Site, tasks: int) -> int:
    """Return what the formula in `Method.parameters` comes to at one site: parameters stored after `tasks` tasks."""
    once = RANK * (site.n_in + site.n_out)
    formulas = {
        "rank * (in + out) a site": once,
        "rank * (in + out) a site and task": once * tasks,
        "rank * (in + out) a site and task; tasks * rank * (in + out) stored": once * tasks,
    }
    return formulas[method.parameters]


@adapted
def test_it_holds_as_many_parameters_as_its_formula_says(method):
    model = adapted_base(method)
    for tasks in (1, 2, 3):
        if tasks > 1 and method.growth == "append":
            next_block(model, str(tasks))
        for site, bank in banks_of(model).values():
            assert sum(bank.tensor(name).numel() for name in bank.specs) == size_of(method, site, tasks)
        learning = sum(p.numel() for p in model.parameters() if p.requires_grad)
        assert learning == sum(RANK * (site.n_in + site.n_out) for site, _ in banks_of(model).values())


@pytest.mark.parametrize("method", PEFT, ids=by_slug)
def test_an_export_declared_for_peft_computes_the_same_function_there(method, tmp_path):
    from peft import PeftModel

    model = adapted_base(method)
    train(model)
    if method.peft == "converted":  # several blocks leave as one LoRA of their total rank
        next_block(model, "2")
        train(model)
    export(model, tmp_path / "peft")
    there = PeftModel.from_pretrained(base(), str(tmp_path / "peft")).eval()  # pyright: ignore[reportArgumentType]
    with torch.no_grad():
        torch.testing.assert_close(there(inputs()), outputs(model), rtol=1e-5, atol=1e-5)
    back = load(base(), tmp_path / "peft")
    torch.testing.assert_close(outputs(back), outputs(model), rtol=1e-5, atol=1e-5)
    assert method.peft == "converted" or torch.equal(outputs(back), outputs(model))


@pytest.mark.parametrize("method", [m for m in ADAPTED if m.peft is None], ids=by_slug)
def test_an_export_not_declared_is_refused(method, tmp_path):
    with pytest.raises(UsageError, match="depends on the input"):
        export(adapted_base(method), tmp_path / "peft")


@pytest.mark.parametrize("method", [m for m in METHODS if m.live != "adapter"], ids=by_slug)
def test_a_method_without_an_adapter_cannot_be_put_on_a_model(method):
    with pytest.raises(UsageError, match=f"{method.slug!r} has no adapter.*rankwise.run"):
        adapt(base(), method.slug)


@adapted
def test_equal_seeds_start_equal_blocks_and_others_do_not(method):
    def start(seed: int) -> Tensor:
        model = adapt(base(), method.slug, rank=RANK, sites=SITES, seed=seed)
        return torch.cat([bank.tensor("A").flatten() for _, bank in banks_of(model).values()])

    assert torch.equal(start(0), start(0)) and not torch.equal(start(0), start(1))


@adapted
def test_growth_follows_the_settings_before_the_method(method):
    assert method.grows(AdapterSettings()) == method.growth
    assert method.grows(AdapterSettings(growth="append")) == "append"
