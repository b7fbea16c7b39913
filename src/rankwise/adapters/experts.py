"""The pair of factors as a mixture: ranks in groups, each group an expert that a router lets act on a token or not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from rankwise.adapters.bank import BLOCK, Blocks, Spec
from rankwise.adapters.context import Context
from rankwise.adapters.inits import Weight
from rankwise.adapters.mixture import top_softmax
from rankwise.adapters.pair import Pair
from rankwise.adapters.sites import ALGEBRAS, Site
from rankwise.config import Count, NotNegative
from rankwise.errors import UsageError

ROUTER, NOISE = "router", "noise"
"""Names of the routing tensors."""
SPREAD = 0.02
"""Standard deviation of a router's starting values."""


@dataclass(frozen=True)
class Experts(Pair):
    """Blocks of E low-rank experts behind a sparse router each; blocks add up.

        l = R x + [training, live block] softplus(N x) * eps,  eps ~ N(0, I)
        g = softmax over the k largest of l, 0 elsewhere
        delta(x) = s * sum over blocks of mix * sum_e g_e B_e A_e x
        balance  = c * E * sum_e P_e f_e,  P_e = mean softmax(l)_e (with a graph), f_e = share of tokens routed to e

    | symbol | shape | meaning |
    |---|---|---|
    | A, B | [E r, in], [out, E r] a block | the factors of expert e are r ranks in a row |
    | R, N | [E, in] a block | router, and the spread of its noise (zeros: std softplus(0) = 0.69) |
    | mix | [n] | weight of the whole block for each example, from the context; 1 without one |

    `rank` counts the ranks of one expert. The balance loss (k under uniform routing) is over the tokens of a whole
    batch and only for live blocks; frozen ones route without noise. Tokens that are padding do not count.
    """

    whole_batch: ClassVar[bool] = True
    experts: Count = 4
    """E, experts of a block."""
    top_k: Count = 2
    """k, experts that act on a token."""
    noisy: bool = False
    """Whether noise of a learned size is added to the scores in training."""
    balance: NotNegative = 1e-3
    """c, weight of the loss that spreads the tokens over the experts."""

    def __post_init__(self) -> None:
        """Refuse more experts at work than there are."""
        if self.top_k > self.experts:
            raise ValueError("top_k must be from 1 to experts")

    @property
    def linear(self) -> bool:
        """False: which experts act depends on the input."""
        return False

    def specs(self, site: Site) -> Mapping[str, Spec]:
        """Return the factors and the routing tensors."""
        rows = Spec((BLOCK, "expert", "in"), "router")
        return {**super().specs(site), ROUTER: rows, **({NOISE: rows} if self.noisy else {})}

    def start(self, site: Site, rank: int, rng: Generator, weight: Weight) -> dict[str, Tensor]:
        """Return the start of E experts of `rank` ranks each."""
        factors = super().start(site, rank * self.experts, rng, weight)
        router = torch.empty(self.experts, site.n_in).normal_(0.0, SPREAD, generator=rng)
        return {**factors, ROUTER: router, **({NOISE: torch.zeros_like(router)} if self.noisy else {})}

    def mixed(
        self, z: Tensor, x: Tensor, blocks: Blocks, context: Context, site: Site, module: nn.Module, training: bool
    ) -> Tensor:
        """Return each expert's responses times its gate and its block's weight: [..., R]."""
        scores = self.scores(x, blocks, site, module, training)
        gates = top_softmax(scores, self.top_k)
        if context.aux is not None and self.balance:
            self._balance(scores, gates, blocks, context, site)
        if context.mix is not None:
            gates = gates * weights(context.mix, blocks.labels, gates, site)
        repeats = torch.tensor(blocks.sizes, device=z.device).div(self.experts, rounding_mode="floor")
        repeats = repeats.repeat_interleave(self.experts)
        return z * gates.flatten(-2).repeat_interleave(repeats, -1, output_size=z.shape[-1]).to(z.dtype)

    def scores(self, x: Tensor, blocks: Blocks, site: Site, module: nn.Module, training: bool) -> Tensor:
        """Return l [..., K, E] for K blocks, in float32."""
        algebra, shape = ALGEBRAS[site.kind], (len(blocks.labels), self.experts)
        found = algebra.down(x, blocks[ROUTER].flatten(0, 1), module, site).unflatten(-1, shape).float()
        if not (training and self.noisy):
            return found
        spread = F.softplus(algebra.down(x, blocks[NOISE].flatten(0, 1), module, site).unflatten(-1, shape).float())
        live = torch.tensor(blocks.live, device=found.device)[:, None]
        return found + live * spread * torch.randn_like(spread)

    def _balance(self, scores: Tensor, gates: Tensor, blocks: Blocks, context: Context, site: Site) -> None:
        assert context.aux is not None
        rows = scores.shape[:-2]
        real = context.tokens if context.tokens is not None and context.tokens.shape == rows else None
        for i in (i for i, live in enumerate(blocks.live) if live):
            likely, used = scores[..., i, :].softmax(-1), (gates[..., i, :] > 0).float()
            pairs = [t.flatten(0, -2) if real is None else t[real] for t in (likely, used)]
            loss = self.balance * self.experts * (pairs[0].mean(0) * pairs[1].detach().mean(0)).sum()
            context.aux.put(site.name, f"balance.{blocks.labels[i]}", loss)


def weights(mix: Mapping[str, Tensor], labels: tuple[str, ...], gates: Tensor, site: Site) -> Tensor:
    """Return each block's weight for each example, to multiply gates [n, ..., K, E]; a block without one weighs 1.

    Raises:
        UsageError: the site sees other rows than the examples.

    """
    ones = gates.new_ones(gates.shape[0])
    columns = [mix.get(label, ones).to(ones) for label in labels]
    if any(column.shape != ones.shape for column in columns):
        raise UsageError(
            f"site {site.name!r} sees {len(ones)} rows, the mixture is for {len(columns[0])} examples; leave it out"
        )
    return torch.stack(columns, -1).view(len(ones), *[1] * (gates.ndim - 3), len(labels), 1)
