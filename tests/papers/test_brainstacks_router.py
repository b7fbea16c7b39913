"""The router of Brainstacks on plain tensors: the search for combinations that help, and how it learns them."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from rankwise.api import adapt
from rankwise.models import load_backbone
from rankwise.models.language import Answers
from rankwise.papers.brainstacks.outcomes import discover, one_hot, targets
from rankwise.papers.brainstacks.router import Fitting, MetaRouter, fit, rebuilt, states_read
from rankwise.papers.brainstacks.routing import bare_states
from rankwise.seeds import generator
from rankwise.streams import Batch, Split


def randn(*shape: int, key: str) -> Tensor:
    return torch.randn(*shape, generator=generator(0, key))


# Combinations of domains, measured


def synergy(single: list[float], pairs: dict[tuple[int, ...], float], none: float) -> Callable[[Tensor], Tensor]:
    """Return losses of one example by the set of domains that act; sets not named lose a little on the best member."""

    def of(row: Tensor) -> float:
        acting = tuple(d for d, w in enumerate(row.tolist()) if w)
        if not acting:
            return none
        return pairs.get(acting, min(single[d] for d in acting) + 0.001 * len(acting))

    return lambda w: torch.tensor([of(row) for row in w])


def test_the_search_finds_a_pair_that_helps_and_leaves_out_what_does_not():
    losses = synergy([1.0, 1.2, 1.5], {(0, 2): 0.6, (0, 1): 0.995, (0, 1, 2): 0.595}, none=2.0)
    chosen, best = discover(losses, 1, 3, 0.01)
    assert chosen.tolist() == [[True, False, True]] and best.tolist() == pytest.approx([0.6])


def test_an_example_that_every_domain_hurts_gets_none():
    chosen, best = discover(synergy([1.0, 1.2], {}, none=0.5), 1, 2, 0.01)
    assert not chosen.any() and best.tolist() == [0.5]


def test_the_search_never_ends_above_the_bare_base_or_the_best_single_domain():
    table = randn(16, 40, key="losses").abs()  # 4 domains: 16 combinations, 40 examples

    def losses(w: Tensor) -> Tensor:
        return table[(w * torch.tensor([8, 4, 2, 1])).sum(1).long(), torch.arange(40)]

    chosen, best = discover(losses, 40, 4, 0.01)
    assert (best <= table[0]).all() and all((best <= table[1 << d]).all() for d in range(4))
    torch.testing.assert_close(losses(chosen.float()), best)
    assert (best < torch.stack([table[1 << d] for d in range(4)]).min(0).values).any()


def test_targets_lean_to_the_examples_own_domain():
    wanted = targets(torch.tensor([[True, False], [False, False]]), 1, 0.2)
    torch.testing.assert_close(wanted, torch.tensor([[0.8, 0.2], [0.0, 0.2]]))


# The router


@pytest.mark.parametrize("kind", ["t5", "llama"])
def test_it_reads_all_tokens_of_the_prompt_and_none_of_the_answer(kind, writers):
    """Prompts and answers are of one length here, so a mask of answers could be taken for one of prompts."""
    backbone = load_backbone(str(writers(kind)), answers=Answers(length=8))
    adapt(backbone.module, "lora", rank=2)
    split = Split([("the cat sits", "the dog"), ("yes", "red blue on")], torch.zeros(2).long(), torch.arange(2))
    batch = Batch(backbone.encode(split.inputs), split.labels, split.ids)
    host = SimpleNamespace(model=backbone.module, backbone=backbone)
    _, tokens = bare_states(host, batch)  # pyright: ignore[reportArgumentType]
    prompts = backbone.encode([prompt for prompt, _ in split.inputs])["attention_mask"].sum(1)
    assert tokens.sum(1).tolist() == prompts.tolist()


def router(count: int = 3, dim: int = 8) -> MetaRouter:
    torch.manual_seed(0)
    return MetaRouter(dim, count, 16).eval()


def test_padding_does_not_reach_the_router_and_domains_are_scored_apart():
    made, h, tokens = router(), randn(4, 6, 8, key="h"), torch.ones(4, 6, dtype=torch.bool)
    with torch.no_grad():
        torch.testing.assert_close(
            made(torch.cat([h, 99 * h], 1), torch.cat([tokens, ~tokens], 1)), made(h, tokens), rtol=1e-5, atol=1e-5
        )
        before = made(h, tokens)
        made.queries.weight[1] += randn(16, key="query")
        after = made(h, tokens)
    assert torch.equal(after[:, [0, 2]], before[:, [0, 2]]) and not torch.allclose(after[:, 1], before[:, 1])


def test_the_temperature_is_kept_between_its_bounds():
    made, h = router(), randn(4, 6, 8, key="h")
    tokens = torch.ones(4, 6, dtype=torch.bool)
    with torch.no_grad():
        plain = made(h, tokens)
        for log, factor in ((-9.0, 1 / 0.3), (9.0, 1 / 3.0)):
            made.log_temperature.weight.fill_(log)
            torch.testing.assert_close(made(h, tokens), plain * factor)


def test_it_reads_the_middle_and_the_last_layer():
    hidden = tuple(randn(2, 3, 4, key=str(i)) for i in range(5))
    torch.testing.assert_close(states_read(hidden), 0.45 * hidden[2] + 0.55 * hidden[4])


def test_it_learns_what_was_measured_as_a_function_of_the_seed():
    domain = torch.arange(60) % 3
    h = randn(3, 8, key="centres")[domain][:, None] + randn(5, 8, key="places") + 0.3 * randn(60, 5, 8, key="noise")
    tokens, wanted = torch.ones(60, 5, dtype=torch.bool), one_hot(60, 3, domain)
    wanted[:, 0] = 1.0  # the first domain helps everywhere
    made = fit(h, tokens, wanted, Fitting(32, 40, 1e-2), 0)
    with torch.no_grad():
        p = made(h, tokens).sigmoid()
    assert ((p > 0.5) == (wanted > 0.5)).float().mean() > 0.97
    torch.manual_seed(1)  # the generator outside has no say
    one, two, other = (fit(h, tokens, wanted, Fitting(8, 2, 1e-2), seed) for seed in (0, 0, 1))
    assert all(torch.equal(t, two.state_dict()[n]) for n, t in one.state_dict().items())
    assert not torch.equal(one.last.weight, other.last.weight)
    back = rebuilt({name: t.clone() for name, t in made.state_dict().items()})
    assert torch.equal(back(h, tokens), made(h, tokens))
