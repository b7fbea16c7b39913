"""The fused path against the plain one, which is the reference: the same values, the same gradients, less kept."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import tiny
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rankwise.adapters import Change, Gate, Identity, Pair, attach, banks_of, grow, pick_sites, using
from rankwise.adapters import atoms as atoms_module
from rankwise.adapters.atoms import gram, largest
from rankwise.adapters.gates import RankWeights
from rankwise.papers.mora import SelfActivated

IN, OUT = 24, 20
GATES: dict[str, Gate] = {
    "identity": Identity(),
    "weights": RankWeights(),
    "top": SelfActivated(top_k=4, temperature=0.3, threshold=0.1),
}
POOLS = {"one": (1, 3), "three": (3, 3), "wide": (12, 4)}
"""Blocks and ranks; wide: more frozen atoms than inputs."""
TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-14, torch.bfloat16: 2e-2}


def drawn(*shape: int, key: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(key), dtype=torch.float64).to(dtype)


def adapted(gate: Gate, pool: str = "three", base: nn.Module | None = None, **settings: float) -> nn.Module:
    model = tiny.seeded(lambda: nn.Sequential(nn.Linear(IN, OUT))) if base is None else nn.Sequential(base)
    attach(model, pick_sites(model, ["0"]), Pair(gate, **{"scale": 0.7, **settings}), {})
    blocks, rank = POOLS[pool]
    for i in range(blocks):
        grow(model, [Change("freeze"), Change("append", f"b{i}", rank)], 0)
    for j, (name, tensor) in enumerate(sorted([*model.named_parameters(), *model.named_buffers()])):
        if ".banks." in name:
            with torch.no_grad():
                tensor.copy_(drawn(*tensor.shape, key=j))
    return model.train()


def results(model: nn.Module, x: Tensor, *, fused: bool, run: Callable[[Tensor], Tensor] | None = None) -> list[Tensor]:
    """Output, gradient of the input, and gradients of what learns."""
    model.zero_grad()
    x = x.clone().requires_grad_()
    with using(model, fused=fused):
        y = (run or model)(x)
        (y.double() * drawn(*y.shape, key=99, dtype=torch.float64)).sum().backward()
    found = [p.grad for p in model.parameters() if p.requires_grad]
    assert x.grad is not None and all(gradient is not None for gradient in found)
    return [y.detach(), x.grad, *(gradient.clone() for gradient in found if gradient is not None)]


def off(found: list[Tensor], expected: list[Tensor]) -> float:
    """The largest relative distance."""
    assert [t.dtype for t in found] == [t.dtype for t in expected]
    pairs = zip(found, expected, strict=True)
    return max(float((a.double() - b.double()).norm() / b.double().norm()) for a, b in pairs)


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("shape", [(7,), (3, 5), (2, 3, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("training", [True, False])
def test_values_and_gradients_are_those_of_the_plain_path(gate, pool, shape, dtype, training):
    model = adapted(GATES[gate], pool).to(dtype).train(training)
    x = drawn(*shape, IN, dtype=dtype)
    found, expected = results(model, x, fused=True), results(model, x, fused=False)
    slack = 10 if gate == "top" and dtype == torch.float32 else 1  # the softmax's slope, 1 / tau, is in its gradients
    assert off(found[:1], expected[:1]) <= TOLERANCE[dtype]
    assert off(found, expected) <= slack * TOLERANCE[dtype]


@pytest.mark.parametrize(("training", "scale"), [(False, 0.7), (True, 0.7), (True, 2.0)])
def test_one_pair_has_the_bits_of_the_plain_path(training, scale):
    model, x = adapted(Identity(), "one", scale=scale).train(training), drawn(5, IN)
    with using(model, fused=False):
        expected = model(x)
    assert torch.equal(model(x), expected)


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("labels", [("b1",), ("b0", "b2"), ()])
def test_some_of_the_blocks(gate, labels):
    model, x = adapted(GATES[gate]), drawn(5, IN)
    ys = []
    for fused in (True, False):
        with using(model, fused=fused, blocks=labels):
            ys.append(model(x))
    torch.testing.assert_close(ys[0], ys[1], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("pool", POOLS)
def test_gradients_are_the_slopes(gate, pool):
    model, x = adapted(GATES[gate], pool).double().train(), drawn(3, IN, dtype=torch.float64).requires_grad_()
    names = [name for name, p in model.named_parameters() if p.requires_grad]

    def run(x: Tensor, *live: Tensor) -> Tensor:
        return torch.func.functional_call(model, dict(zip(names, live, strict=True)), (x,))

    live = [model.get_parameter(name).detach().clone().requires_grad_() for name in names]
    assert torch.autograd.gradcheck(run, (x, *live), eps=1e-7, atol=1e-5)


@pytest.mark.parametrize("gate", GATES)
def test_a_second_derivative_is_refused(gate):
    model, x = adapted(GATES[gate]), drawn(3, IN).requires_grad_()
    (first,) = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


@pytest.mark.parametrize("gate", GATES)
def test_a_graph_that_is_kept_gives_the_same_twice_and_in_part(gate):
    model, x = adapted(GATES[gate]), drawn(3, IN).requires_grad_()
    live = [p for p in model.parameters() if p.requires_grad]
    loss = model(x).square().sum()
    whole = torch.autograd.grad(loss, [x, *live], retain_graph=True)
    for i, tensor in enumerate([x, *live]):
        (alone,) = torch.autograd.grad(loss, tensor, retain_graph=True)
        assert torch.equal(alone, whole[i])
    assert all(torch.equal(a, b) for a, b in zip(torch.autograd.grad(loss, [x, *live]), whole, strict=True))


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_changes_no_bit(gate, reentrant):
    model, x = adapted(GATES[gate]), drawn(2, 5, IN)
    expected = results(model, x, fused=True)
    found = results(model, x, fused=True, run=lambda x: checkpoint(model, x, use_reentrant=reentrant))  # pyright: ignore[reportArgumentType,reportReturnType]
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("gate", GATES)
def test_autocast_computes_as_the_plain_path_does(gate):
    model, x = adapted(GATES[gate]), drawn(2, 5, IN)
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = results(model, x, fused=True), results(model, x, fused=False)
    assert found[0].dtype == torch.bfloat16 and off(found, expected) <= TOLERANCE[torch.bfloat16]


def test_dropout_drops_what_the_plain_path_drops():
    model, x = adapted(Identity(), dropout=0.4).train(), drawn(5, IN)
    found = []
    for fused in (True, False):
        torch.manual_seed(0)
        found.append(results(model, x, fused=fused))
    assert off(*found) <= 1e-6


class Twice(nn.Linear):
    """A base of another kind: what its backward hands over is not known to be fresh."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * 2


class Deaf(nn.Linear):
    """A base through which no gradient comes."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.detach())


@pytest.mark.parametrize("base", [Twice, Deaf])
def test_any_base_will_do(base):
    model, x = adapted(Identity(), base=tiny.seeded(lambda: base(IN, OUT))), drawn(2, 5, IN)
    assert off(results(model, x, fused=True), results(model, x, fused=False)) <= 1e-6


def test_a_hook_on_the_base_sees_the_bases_own_gradient():
    model, seen = adapted(Identity()), []
    model.get_submodule("0.base").register_full_backward_hook(lambda module, inner, outer: seen.append(inner[0]))
    for fused in (True, False):
        results(model, drawn(2, 5, IN), fused=fused)
    assert len(seen) == 2 and off(seen[:1], seen[1:]) <= 1e-6


def test_a_bfloat16_base_takes_a_float32_adapter_and_keeps_its_own_input():
    model = adapted(Identity())
    model.get_submodule("0.base").to(torch.bfloat16)
    x = drawn(2, 5, IN, dtype=torch.bfloat16)
    found, expected = results(model, x, fused=True), results(model, x, fused=False)
    assert off(found, expected) <= TOLERANCE[torch.bfloat16]
    assert kept(model, x) == {torch.bfloat16: 10 * IN, torch.float32: 10 * 3, torch.int64: 0}  # no copy in float32


def kept(model: nn.Module, x: Tensor) -> dict[torch.dtype, int]:
    """Entries that a forward keeps for its backward, by dtype, what the model holds anyway not counted."""
    own = {tensor.data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    held: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in own:
            held[tensor.data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(x.clone().requires_grad_())
    counts = dict.fromkeys([torch.float32, torch.bfloat16, torch.int64], 0)
    for tensor in held.values():
        counts[tensor.dtype] += tensor.numel()
    return counts


def test_what_is_kept_is_the_input_and_little_besides():
    x = drawn(2, 50, IN)
    assert kept(adapted(Identity(), "one"), x)[torch.float32] == 100 * (IN + 3)
    atoms = kept(adapted(GATES["top"], "wide"), x)
    assert atoms[torch.int64] == 100 * 4 and atoms[torch.float32] == 100 * (IN + 4 + 1 + 4 + 4) + IN * IN


# atoms


@pytest.mark.parametrize("atoms", [1, 5, 40, 41, 64, 103, 160, 1601])
@pytest.mark.parametrize("k", [1, 2, 8, 16])
def test_the_largest_are_found_exactly(atoms, k):
    z = drawn(50, atoms)
    k = min(k, atoms)
    best, index = largest(z, k)
    assert torch.equal(z.gather(1, index), best)
    assert torch.equal(best.sort(-1, descending=True).values, z.topk(k, -1).values)


def test_a_gram_matrix_is_remembered_until_its_keys_change():
    a = drawn(30, 5)
    first = gram(a)
    assert gram(a) is first
    a.mul_(2)
    assert gram(a) is not first
    torch.testing.assert_close(gram(a), 4 * first)
    before = len(atoms_module._grams)
    del a
    assert len(atoms_module._grams) == before - 1


@pytest.mark.parametrize(
    "switch", [{"weights": "dense"}, {"level": "block"}, {"scores": "absolute"}, {"normalise_keys": True}]
)
def test_an_ablation_takes_the_plain_path(switch):
    gate = SelfActivated(top_k=4, **switch)
    model = adapted(gate)
    (_, bank), *_ = banks_of(model).values()
    assert gate.fused(bank.view(), 1.0, True) is None
