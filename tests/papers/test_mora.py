"""MoRA on plain tensors: the invariants of its routing, its gradients by hand, and each of its switches."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from pools import delta, gated, pool, randn, random_pool, site_of
from torch import Tensor

from rankwise.adapters import Blocks, Context, Identity, Sink
from rankwise.config import parse_record
from rankwise.errors import UsageError
from rankwise.papers.mora import METHOD, SelfActivated

PAPER = SelfActivated(top_k=8, temperature=0.05, threshold=0.2)
SHAPES = [(5, 24), (3, 7, 24)]
POOLS = [8, 104]
WIDTH, OUT = 24, 20


def scores(gate: SelfActivated, x: Tensor, blocks: Blocks) -> Tensor:
    return gate.score(x @ blocks["A"].T, x, blocks)


def weights(gate: SelfActivated, x: Tensor, blocks: Blocks, *, training: bool) -> Tensor:
    return gate.mix(scores(gate, x, blocks), blocks.sizes, prune=not training or gate.threshold_in_training)


# the formula


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("atoms", POOLS)
@pytest.mark.parametrize("training", [True, False])
def test_the_batch_form_is_the_formula_token_by_token(shape, atoms, training):
    blocks, x = random_pool(atoms, WIDTH, OUT), randn(*shape, key="x")
    a, b = blocks["A"], blocks["B"]
    expected = []
    for token in x.reshape(-1, WIDTH):
        z = torch.stack([row @ token for row in a])
        s = z / z.square().sum().sqrt()
        chosen = sorted(range(atoms), key=lambda i: -s[i])[: min(8, atoms)]
        total = sum(math.exp(s[i] / 0.05) for i in chosen)
        w = [math.exp(s[i] / 0.05) / total if i in chosen and (training or s[i] >= 0.2) else 0.0 for i in range(atoms)]
        expected.append(sum((w[i] * z[i] * b[:, i] for i in range(atoms)), torch.zeros(OUT)))
    found = delta(PAPER, x, blocks, training=training)
    assert found.shape == (*shape[:-1], OUT)
    torch.testing.assert_close(found.reshape(-1, OUT), torch.stack(expected), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("atoms", POOLS)
@pytest.mark.parametrize("top_k", [1, 2, 8, 200])
def test_scores_and_weights_are_a_mixture(shape, atoms, top_k):
    gate = replace(PAPER, top_k=top_k)
    blocks, x = random_pool(atoms, WIDTH, OUT), randn(*shape, key="x")
    torch.testing.assert_close(scores(gate, x, blocks).square().sum(-1), torch.ones(shape[:-1]), rtol=0, atol=1e-6)
    w = weights(gate, x, blocks, training=True)
    torch.testing.assert_close(w.sum(-1), torch.ones(shape[:-1]), rtol=0, atol=1e-6)
    assert (w >= 0).all() and ((w > 0).sum(-1) <= max(top_k, 2)).all()
    pruned = weights(gate, x, blocks, training=False)
    assert (pruned.sum(-1) <= 1 + 1e-6).all() and (pruned <= w).all()
    assert ((pruned > 0) <= (scores(gate, x, blocks) >= 0.2)).all()


@pytest.mark.parametrize("training", [True, False])
def test_the_update_is_positively_homogeneous_and_no_more(training):
    blocks, x = random_pool(104, WIDTH, OUT), randn(50, WIDTH, key="x")
    one = delta(PAPER, x, blocks, training=training)
    for c in (0.01, 3.0, 500.0):
        scaled = delta(PAPER, c * x, blocks, training=training)
        torch.testing.assert_close(scaled, c * one, rtol=1e-5, atol=1e-5 * c * float(one.abs().max()))
    assert (delta(PAPER, -x, blocks, training=training) + one).norm() > 0.1 * one.norm()


@pytest.mark.parametrize("training", [True, False])
def test_the_order_of_the_atoms_does_not_matter(training):
    blocks, x = random_pool(104, WIDTH, OUT), randn(3, 7, WIDTH, key="x")
    order = torch.randperm(104, generator=torch.Generator().manual_seed(0))
    shuffled = pool(blocks["A"][order], blocks["B"][:, order], 8)
    torch.testing.assert_close(delta(PAPER, x, shuffled, training=training), delta(PAPER, x, blocks, training=training))


@pytest.mark.parametrize("atoms", POOLS)
def test_a_hot_softmax_over_all_atoms_is_the_plain_sum_over_their_number(atoms):
    gate = SelfActivated(top_k=atoms, temperature=1e6, threshold=0.0)
    blocks, x = random_pool(atoms, WIDTH, OUT), randn(5, WIDTH, key="x")
    plain = x @ blocks["A"].T @ blocks["B"].T / atoms
    torch.testing.assert_close(delta(gate, x, blocks, training=True), plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("atoms", POOLS)
def test_a_cold_softmax_leaves_the_best_atom_alone(atoms):
    gate = SelfActivated(top_k=8, temperature=1e-6)
    blocks, x = random_pool(atoms, WIDTH, OUT), randn(50, WIDTH, key="x")
    z = x @ blocks["A"].T
    best = z.argmax(-1)
    expected = z.gather(-1, best[:, None]) * blocks["B"].T[best]
    torch.testing.assert_close(delta(gate, x, blocks, training=False), expected, rtol=1e-5, atol=1e-5)


def test_a_token_without_response_gets_zero_and_finite_gradients():
    blocks = random_pool(16, WIDTH, OUT)
    a = blocks["A"].clone().requires_grad_()
    found = delta(PAPER, torch.zeros(2, WIDTH), pool(a, blocks["B"], 8), training=True)
    found.sum().backward()
    assert torch.equal(found, torch.zeros(2, OUT))
    assert a.grad is not None and a.grad.isfinite().all()


# pools that grow


def test_atoms_that_stay_out_of_the_top_change_nothing_though_keys_at_random_do():
    x = randn(1, WIDTH, key="x")[0]
    a, b = randn(16, WIDTH, key="A"), randn(OUT, 16, key="B")
    a[:8] = a[:8] * torch.sign(a[:8] @ x)[:, None]  # eight old atoms answer, so that zeros rank below the top 8
    old = pool(a, b, 8)
    random = randn(8, WIDTH, key="new")
    orthogonal = random - (random @ x)[:, None] * x / x.square().sum()
    for training in (True, False):
        before = delta(PAPER, x, old, training=training)
        values = torch.zeros(OUT, 8)
        same = delta(PAPER, x, pool(torch.cat([a, orthogonal]), torch.cat([b, values], 1), 8), training=training)
        torch.testing.assert_close(same, before, rtol=0, atol=1e-6 * float(before.abs().max()) + 1e-6)
        moved = delta(PAPER, x, pool(torch.cat([a, random]), torch.cat([b, values], 1), 8), training=training)
        assert (moved - before).norm() > 1e-3 * before.norm()


# gradients


def test_gradients_are_those_written_down_by_hand():
    """mora.md, "Gradients": float64, 104 atoms, every row and column a leaf."""
    blocks, x = random_pool(104, WIDTH, OUT, dtype=torch.float64), randn(6, WIDTH, key="x", dtype=torch.float64)
    g = randn(6, OUT, key="g", dtype=torch.float64)
    a, b = blocks["A"].requires_grad_(), blocks["B"].requires_grad_()
    (delta(PAPER, x, pool(a, b, 8), training=True) * g).sum().backward()
    with torch.no_grad():
        z = x @ a.T
        n = z.norm(dim=-1, keepdim=True)
        s = z / n
        w = weights(PAPER, x, blocks, training=True)
        c = g @ b
        by_score = torch.where(w > 0, (w / 0.05) * (c * z - (w * c * z).sum(-1, keepdim=True)), 0.0)
        by_response = w * c + (by_score - s * (by_score * s).sum(-1, keepdim=True)) / n
    assert a.grad is not None and b.grad is not None and a.grad.dtype == torch.float64
    torch.testing.assert_close(b.grad, torch.einsum("ni,no->oi", w * z, g), rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(a.grad, by_response.T @ x, rtol=1e-9, atol=1e-10)


def test_values_never_selected_get_no_gradient_but_their_keys_do():
    blocks, x = random_pool(104, WIDTH, OUT), randn(2, WIDTH, key="x")
    a, b = blocks["A"].requires_grad_(), blocks["B"].requires_grad_()
    delta(PAPER, x, pool(a, b, 8), training=True).square().sum().backward()
    never = (weights(PAPER, x, blocks, training=True) == 0).all(0)
    assert 80 <= int(never.sum()) < 104
    assert a.grad is not None and b.grad is not None
    assert torch.equal(b.grad[:, never], torch.zeros(OUT, int(never.sum())))
    assert (b.grad[:, ~never].norm(dim=0) > 0).all()
    assert (a.grad[never].norm(dim=1) > 0).all()


# the edges of the selection


def test_at_least_two_atoms_compete():
    blocks, x = random_pool(104, WIDTH, OUT), randn(5, WIDTH, key="x")
    one, two = (weights(replace(PAPER, top_k=k, temperature=1.0), x, blocks, training=True) for k in (1, 2))
    assert torch.equal(one, two) and ((one > 0).sum(-1) == 2).all()


def test_a_pool_of_one_atom_is_that_atom():
    blocks, x = random_pool(1, WIDTH, OUT, rank=1), randn(5, WIDTH, key="x")
    plain = x @ blocks["A"].T @ blocks["B"].T
    torch.testing.assert_close(delta(PAPER, x, blocks, training=True), plain)


def test_of_equal_responses_exactly_k_act_and_alike():
    x = randn(4, WIDTH, key="x").abs()
    blocks = pool(torch.ones(104, WIDTH), randn(OUT, 104, key="B"), 8)
    w = weights(PAPER, x, blocks, training=True)
    assert ((w > 0).sum(-1) == 8).all()
    torch.testing.assert_close(w[w > 0], torch.full((32,), 1 / 8))


def test_where_every_response_is_negative_training_mixes_and_inference_prunes():
    x = randn(4, WIDTH, key="x").abs()
    blocks = pool(-randn(104, WIDTH, key="A").abs(), randn(OUT, 104, key="B"), 8)
    w = weights(PAPER, x, blocks, training=True)
    torch.testing.assert_close(w.sum(-1), torch.ones(4))
    assert torch.equal(w.argmax(-1), (x @ blocks["A"].T).argmax(-1))  # the least negative one leads
    assert delta(PAPER, x, blocks, training=True).norm() > 0
    for threshold in (0.0, 0.2):
        off = delta(replace(PAPER, threshold=threshold), x, blocks, training=False)
        assert torch.equal(off, torch.zeros(4, OUT))


def test_the_threshold_acts_at_inference_only_and_nothing_is_renormalised():
    blocks, x = random_pool(104, WIDTH, OUT), randn(200, WIDTH, key="x")
    s, free = scores(PAPER, x, blocks), weights(PAPER, x, blocks, training=True)
    assert torch.equal(weights(PAPER, x, blocks, training=False), torch.where(s >= 0.2, free, 0.0))
    unpruned = delta(replace(PAPER, threshold=0.0), x, blocks, training=True)
    assert torch.equal(delta(PAPER, x, blocks, training=True), unpruned)
    assert (delta(PAPER, x, blocks, training=False) != unpruned).any()


# switches


def test_threshold_in_training_prunes_in_training_too():
    gate = replace(PAPER, threshold_in_training=True)
    blocks, x = random_pool(104, WIDTH, OUT), randn(200, WIDTH, key="x")
    assert torch.equal(delta(gate, x, blocks, training=True), delta(PAPER, x, blocks, training=False))


def test_a_threshold_in_pool_units_shrinks_with_the_pool():
    gate = replace(PAPER, threshold=2.0, threshold_unit="pool")
    for atoms in POOLS:
        blocks, x = random_pool(atoms, WIDTH, OUT), randn(50, WIDTH, key="x")
        absolute = replace(PAPER, threshold=2.0 / math.sqrt(atoms))
        assert gate.cut(atoms) == pytest.approx(2.0 / math.sqrt(atoms))
        assert torch.equal(delta(gate, x, blocks, training=False), delta(absolute, x, blocks, training=False))


@pytest.mark.parametrize("training", [True, False])
def test_dense_is_the_plain_sum_and_uniform_its_mean(training):
    blocks, x = random_pool(104, WIDTH, OUT), randn(3, 7, WIDTH, key="x")
    plain = delta(Identity(), x, blocks, training=training)
    assert torch.equal(delta(replace(PAPER, weights="dense"), x, blocks, training=training), plain)
    uniform = delta(replace(PAPER, weights="uniform"), x, blocks, training=training)
    torch.testing.assert_close(uniform, plain / 104, rtol=1e-4, atol=1e-5)


def test_all_takes_the_softmax_over_every_atom():
    gate = replace(PAPER, selection="all")
    blocks, x = random_pool(104, WIDTH, OUT), randn(5, WIDTH, key="x")
    w = weights(gate, x, blocks, training=True)
    assert torch.equal(w, torch.softmax(scores(gate, x, blocks) / 0.05, -1)) and (w > 0).all()


def test_absolute_scores_let_a_strongly_negative_response_act():
    gate = replace(PAPER, scores="absolute")
    blocks, x = random_pool(104, WIDTH, OUT), randn(50, WIDTH, key="x")
    z = x @ blocks["A"].T
    w = weights(gate, x, blocks, training=True)
    assert torch.equal(w.argmax(-1), z.abs().argmax(-1)) and ((w > 0) & (z < 0)).any()
    found = delta(gate, -x, blocks, training=False)
    torch.testing.assert_close(found, -delta(gate, x, blocks, training=False), rtol=1e-5, atol=1e-5)


def test_block_gates_the_atoms_of_a_task_together():
    gate = replace(PAPER, level="block", top_k=16)
    blocks, x = random_pool(104, WIDTH, OUT), randn(50, WIDTH, key="x")
    sums = scores(gate, x, blocks).unflatten(-1, (13, 8)).sum(-1)
    best, index = sums.topk(2, -1)
    per_block = torch.zeros(50, 13).scatter(-1, index, torch.softmax(best / 0.05, -1))
    for training in (True, False):
        w = weights(gate, x, blocks, training=training).unflatten(-1, (13, 8))
        kept = per_block if training else torch.where(sums >= 0.2, per_block, 0.0)
        torch.testing.assert_close(w, kept[..., None].expand_as(w), rtol=0, atol=1e-7)


def test_block_gating_follows_the_sizes_of_the_blocks():
    gate = replace(PAPER, level="block", selection="all", temperature=1.0)
    a, b, x = randn(7, WIDTH, key="A"), randn(OUT, 7, key="B"), randn(5, WIDTH, key="x")
    blocks = Blocks(({"A": a, "B": b},), (4, 1, 2), ("0", "1", "2"), {"A": 0, "B": 1}, (7,))
    s = scores(gate, x, blocks)
    per_block = torch.softmax(torch.stack([s[:, :4].sum(-1), s[:, 4], s[:, 5:].sum(-1)], -1), -1)
    torch.testing.assert_close(weights(gate, x, blocks, training=True), per_block[:, [0, 0, 0, 0, 1, 2, 2]])


def test_a_linear_router_scores_in_place_of_the_keys():
    gate = replace(PAPER, router="linear")
    plain, x = random_pool(104, WIDTH, OUT), randn(3, 7, WIDTH, key="x")
    router = randn(104, WIDTH, key="router")
    blocks = pool(plain["A"], plain["B"], 8, router)
    responses = x @ router.T
    expected = responses / responses.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(scores(gate, x, blocks), expected)
    w = weights(gate, x, blocks, training=True)
    torch.testing.assert_close(gated(gate, x, blocks, training=True), w * (x @ plain["A"].T))


def test_normalised_keys_rank_by_angle():
    gate = replace(PAPER, normalise_keys=True)
    blocks, x = random_pool(104, WIDTH, OUT), randn(50, WIDTH, key="x")
    long = pool(blocks["A"] * torch.linspace(0.1, 10, 104)[:, None], blocks["B"], 8)
    torch.testing.assert_close(scores(gate, x, long), scores(gate, x, blocks), rtol=1e-4, atol=1e-6)
    assert (scores(PAPER, x, long) - scores(PAPER, x, blocks)).abs().max() > 0.1
    w = weights(gate, x, long, training=True)
    torch.testing.assert_close(gated(gate, x, long, training=True), w * (x @ long["A"].T))  # the raw response stays


@pytest.mark.parametrize(
    "wrong", [{"top_k": 0}, {"temperature": 0.0}, {"threshold": "off"}, {"topk": 8}, {"scores": "x"}]
)
def test_settings_outside_their_range_are_refused(wrong):
    with pytest.raises(UsageError, match=str(next(iter(wrong))).replace("topk", "top_k")):
        parse_record(METHOD.gate, wrong, "adapter.gate")


# precision


@pytest.mark.parametrize("router", ["self", "linear"])
def test_routing_is_float32_under_autocast(router):
    gate = replace(PAPER, router=router)
    plain, x = random_pool(104, WIDTH, OUT), randn(50, WIDTH, key="x")
    blocks = pool(plain["A"], plain["B"], 8, randn(104, WIDTH, key="router"))
    z = (x @ plain["A"].T).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        s = gate.score(z.float(), x, blocks)
        w = gate.mix(s, blocks.sizes, prune=False)
        out = gate(z, x, blocks, Context(), site_of(blocks), True)
    assert s.dtype == w.dtype == torch.float32 and out.dtype == torch.bfloat16
    torch.testing.assert_close(s.square().sum(-1), torch.ones(50), rtol=0, atol=1e-6)
    torch.testing.assert_close(w.sum(-1), torch.ones(50), rtol=0, atol=1e-6)
    assert torch.equal(s, gate.score(z.float(), x, blocks))
    assert torch.equal(out, (w * z.float()).bfloat16())


# diagnostics


@pytest.mark.parametrize("level", ["atom", "block"])
def test_shares_of_the_blocks_sum_to_at_most_one(level):
    gate = replace(PAPER, level=level)
    blocks, x, sink = random_pool(104, WIDTH, OUT), randn(100, WIDTH, key="x"), Sink()
    gated(gate, x, blocks, training=False, sink=sink)
    share, passed = sink.means()["block_share"], sink.means()["pass_rate"][0]
    assert len(share) == 13 and min(share) >= 0 and 0 < sum(share) <= passed + 1e-5 <= 1 + 1e-5
    free = Sink()
    gated(gate, x, blocks, training=True, sink=free)
    assert sum(free.means()["block_share"]) == pytest.approx(1, abs=1e-5)
