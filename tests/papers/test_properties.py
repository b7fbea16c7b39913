"""What every method promises of its adapter, one table for all: a method's file alone puts it in here."""

from __future__ import annotations

import ast
import copy
import operator
import re

import pytest
import torch
from torch import Tensor, nn
from transformers import ViTConfig, ViTModel

import rankwise
from rankwise import papers
from rankwise.adapters import Change, adapter_of, banks_of, bare, grow, using
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
        self.out = nn.Linear(16, 8, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        """Map token ids [N, S] to features [N, S, 8] plus the mean of a convolution over them."""
        x = self.out(self.norm(torch.tanh(self.hidden(self.embed(ids)))))
        return x + self.conv(x[:, None]).mean((2, 3)).mean(-1)[:, None, None]


SITES = {"embed": "embedding", "hidden": "linear", "conv": "conv2d", "out": "linear"}


class Vision(nn.Module):
    """A small vision transformer, for methods whose sites are blocks."""

    def __init__(self) -> None:
        super().__init__()
        sizes = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 12, "intermediate_size": 20}
        self.vit = ViTModel(ViTConfig(**sizes, image_size=8, patch_size=4), add_pooling_layer=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Map images [N, 3, 8, 8] to states [N, 5, 12]."""
        return self.vit(pixel_values=pixels).last_hidden_state


def chooses_sites(method: Method) -> bool:
    """Say whether the method has a choice of sites of its own."""
    return "sites" in method.defaults.get("adapter", {})


def base(method: Method | None = None) -> nn.Module:
    torch.manual_seed(0)
    return (Vision() if method is not None and chooses_sites(method) else Base()).eval()


def inputs(model: nn.Module) -> Tensor:
    if any(isinstance(module, ViTModel) for module in model.modules()):
        return torch.randn(6, 3, 8, 8, generator=generator(0, "pixels"))
    return torch.randint(0, 11, (6, 9), generator=generator(0, "ids"))


def adapted_base(method: Method, seed: int = 0) -> nn.Module:
    sites = None if chooses_sites(method) else [name for name, kind in SITES.items() if kind in method.kinds]
    return adapt(base(method), method.slug, rank=RANK, sites=sites, seed=seed)


def train(model: nn.Module, steps: int = 5, blocks: tuple[str, ...] | None = None, seed: int = 0) -> None:
    """Fit random targets, so that every live tensor moves."""
    with torch.no_grad():
        target = torch.randn(model(inputs(model)).shape, generator=generator(seed, "target"))
    rule = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(steps):
        rule.zero_grad()
        with using(model.train(), blocks=blocks):
            (model(inputs(model)) - target).square().mean().backward()
        rule.step()
    model.eval()


def outputs(model: nn.Module, blocks: tuple[str, ...] | None = None) -> Tensor:
    with torch.no_grad(), using(model.eval(), blocks=blocks):
        return model(inputs(model))


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
        assert method.peft == ("merged" if method.live == "base" else None)
    if not method.mergeable:
        assert any("merge" in reason for reason in method.refuses) and method.peft is None


@adapted
def test_a_fresh_adapter_leaves_the_output_as_declared(method):
    assert holds(method.identity_at_creation, outputs(base(method)), outputs(adapted_base(method)))


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


def gradients(model: nn.Module, run: nn.Module) -> dict[str, Tensor]:
    """Run forward and backward through `run`, which is `model` or made of it."""
    model.zero_grad()
    torch.manual_seed(0)
    y = run(inputs(model))
    (y * torch.randn(y.shape, generator=generator(0, "weights"))).sum().backward()
    return {"y": y.detach()} | {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@adapted
def test_it_compiles_as_one_graph_with_the_values_of_the_plain_path(method):
    """The graph that torch.compile traces; what a compiler then makes of it is not ours."""
    torch.compiler.reset()
    model = adapted_base(method)
    train(model, 2)
    next_block(model, "2")
    train(model, 2)
    with using(model.train(), fused=False):
        plain = gradients(model, model)
    compiled = gradients(model, torch.compile(model, backend="aot_eager", fullgraph=True))
    assert plain.keys() == compiled.keys()
    for name, tensor in plain.items():
        torch.testing.assert_close(compiled[name], tensor, rtol=1e-5, atol=1e-6, msg=name)


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
    assert {type(m) for m in plain.modules()} == {type(m) for m in base(method).modules()}
    torch.testing.assert_close(outputs(plain), before, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", [m for m in ADAPTED if m.mergeable], ids=by_slug)
def test_one_block_of_several_can_be_merged(method):
    model = adapted_base(method)
    train(model)
    next_block(model, "2")
    train(model)
    alone = outputs(model, ("1",))
    try:
        plain = merge(model, blocks=["1"])
    except UsageError as error:
        assert "act together" in str(error)
        return
    torch.testing.assert_close(outputs(plain), alone, rtol=1e-5, atol=1e-5)


@adapted
def test_a_saved_adapter_comes_back_with_its_blocks(method, tmp_path):
    model = adapted_base(method)
    train(model)
    next_block(model, "2")
    train(model)
    save(model, tmp_path / "adapter")
    back = load(base(method), tmp_path / "adapter")
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
    if adapter_of(model).branch.init.residual:  # a new block was taken out of the base, which is another one since
        with bare(model):
            before = fingerprint(model)
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
    """Of the second block: a router's row for the only one has nothing to choose. Descriptors are in no forward."""
    model = adapted_base(method)
    train(model, steps=1)
    next_block(model, "2")
    train(model, steps=1, blocks=acting(method, "2"))
    with using(model.train(), blocks=acting(method, "2")):
        model(inputs(model)).square().mean().backward()
    banks = [bank for _, bank in banks_of(model).values()]
    live = {f"{i}.{name}": (p, bank.specs[name]) for i, bank in enumerate(banks) for name, p in bank.live.items()}
    assert len(live) == sum(spec.learns for bank in banks for spec in bank.specs.values())
    for name, (parameter, spec) in live.items():
        if spec.role == "descriptor":
            assert parameter.grad is None, name
        else:
            assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.norm() > 0, name


def count(formula: str, names: dict[str, int]) -> float:
    """Return the value of an arithmetic formula over `names`."""

    def value(node: ast.expr) -> float:
        match node:
            case ast.Constant(value=int() | float() as number):
                return number
            case ast.Name(id=name):
                return names[name]
            case ast.BinOp(left=left, op=op, right=right):
                rules = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Pow: operator.pow}
                return {**rules, ast.Div: operator.truediv}[type(op)](value(left), value(right))
            case ast.Call(func=ast.Name(id="min"), args=args):
                return min(value(arg) for arg in args)
            case ast.Call(func=ast.Name(id="divisor"), args=[size, most]):  # the largest one up to most and the root
                n, k = int(value(size)), int(value(most))
                return max(d for d in range(1, k + 1) if n % d == 0 and d * d <= n)
        raise AssertionError(f"{formula!r}: {ast.dump(node)} is no part of a formula")

    return value(ast.parse(re.sub(r"\bin\b", "n_in", formula), mode="eval").body)


@adapted
def test_it_trains_as_many_parameters_as_its_formula_says(method):
    """`Method.parameters` begins with the formula of one site, over rank, in, out and the settings of gate and form."""
    model = adapted_base(method)
    branch = adapter_of(model).branch
    settings = {k: v for k, v in {**vars(branch.gate), **vars(branch)}.items() if isinstance(v, int)}
    expected = 0.0
    for site, _ in banks_of(model).values():
        names = {"rank": RANK, "n_in": site.n_in, "out": site.n_out, **settings}
        expected += count(method.parameters.partition(" a site")[0], names)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == expected


@pytest.mark.parametrize("method", PEFT, ids=by_slug)
def test_an_export_declared_for_peft_computes_the_same_function_there(method, tmp_path):
    from peft import PeftModel

    model = adapted_base(method)
    train(model)
    if method.peft == "converted":  # several blocks leave as one LoRA of their total rank
        next_block(model, "2")
        train(model)
    export(model, tmp_path / "peft")
    there = PeftModel.from_pretrained(base(method), str(tmp_path / "peft")).eval()  # pyright: ignore[reportArgumentType]
    with torch.no_grad():
        torch.testing.assert_close(there(inputs(model)), outputs(model), rtol=1e-5, atol=1e-5)
    back = load(base(method), tmp_path / "peft")
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
        model = adapted_base(method, seed)
        held = [tensor for _, bank in banks_of(model).values() for tensor in bank.view().parts[0].values()]
        return torch.cat([tensor.flatten() for tensor in (*held, *adapter_of(model).shared.tensors().values())])

    assert torch.equal(start(0), start(0))
    assert adapter_of(adapted_base(method)).branch.init.residual or not torch.equal(start(0), start(1))


@adapted
def test_growth_follows_the_settings_before_the_method(method):
    assert method.grows(AdapterSettings()) == method.growth
    assert method.grows(AdapterSettings(growth="append")) == "append"
