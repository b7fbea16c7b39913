"""The meta-router: from the bare base's states of a prompt, a weight for each domain on its own."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rankwise.seeds import derive, generator

MIDDLE = 0.45  # share of the middle layer's states in what is read; the rest is the last layer's
COLDEST, HOTTEST = 0.3, 3.0


@dataclass(frozen=True)
class Fitting:
    """How the router is trained."""

    width: int
    epochs: int
    lr: float
    batch: int = 16
    decay: float = 0.01
    push: float = 0.05
    """Weight of the loss on weights within 0.3 of a half."""
    held: float = 0.1
    """Share of the rows that choose the epoch that is kept."""


class MetaRouter(nn.Module):
    """Sigmoid weights for D domains from token states h [n, S, d].

        x = LN(P h)            g = LN(sum_t softmax_t(x q) x)            c_i = LN(sum_t softmax_t(x Q_i) x)
        logit_i = MLP([c_i, g]) / T,   T = clamp(exp(log T), 0.3, 3)

    Queries start at N(0, 0.02^2), T at 1. Domains are scored one by one, never against each other.
    """

    def __init__(self, dim: int, domains: int, width: int) -> None:
        """Make a router for states of `dim` features; starting values come from torch's generator."""
        super().__init__()
        self.project, self.norm = nn.Linear(dim, width), nn.LayerNorm(width)
        self.queries = nn.Embedding(domains + 1, width)  # the last one is for the whole prompt
        self.context = nn.LayerNorm(width)
        self.overall = nn.LayerNorm(width)
        self.first, self.middle, self.second = nn.Linear(2 * width, width), nn.LayerNorm(width), nn.Linear(width, width)
        self.last = nn.Linear(width, 1)
        self.log_temperature = nn.Embedding(1, 1)
        nn.init.normal_(self.queries.weight, std=0.02)
        nn.init.zeros_(self.log_temperature.weight)

    def forward(self, h: Tensor, tokens: Tensor) -> Tensor:
        """Return logits [n, D] for states h [n, S, d] whose real tokens are marked [n, S]."""
        x = self.norm(self.project(h))
        scores = (x @ self.queries.weight.T).masked_fill(~tokens[..., None], -torch.inf)
        pooled = scores.softmax(1).transpose(1, 2) @ x
        own, whole = self.context(pooled[:, :-1]), self.overall(pooled[:, -1:])
        both = torch.cat([own, whole.expand_as(own)], -1)
        y = self.middle(F.dropout(F.gelu(self.first(both)), 0.1, self.training))
        y = F.dropout(F.gelu(self.second(y)), 0.1, self.training)
        return self.last(y)[..., 0] / self.log_temperature.weight.exp().clamp(COLDEST, HOTTEST)


def states_read(hidden: tuple[Tensor, ...]) -> Tensor:
    """Return the mixture of middle and last states that the router reads: [n, S, d] in float32."""
    return MIDDLE * hidden[len(hidden) // 2].float() + (1 - MIDDLE) * hidden[-1].float()


def fit(h: Tensor, tokens: Tensor, wanted: Tensor, how: Fitting, seed: int) -> MetaRouter:
    """Train a router on states [n, S, d], marks [n, S] and wanted weights [n, D]: a function of these and the seed.

    The loss is the mean binary cross-entropy plus push * mean(max(0, 0.3 - |p - 0.5|)). The epoch with the lowest
    cross-entropy on held-out rows is kept.
    """
    rows, domains = wanted.shape
    order = torch.randperm(rows, generator=generator(seed, "router rows", rows)).to(h.device)
    held, taught = order[: int(how.held * rows)], order[int(how.held * rows) :]
    judged = held if len(held) else taught
    with torch.random.fork_rng():
        torch.manual_seed(derive(seed, "router", domains))
        router = MetaRouter(h.shape[-1], domains, how.width).to(h.device)
        rule = torch.optim.AdamW(router.parameters(), lr=how.lr, weight_decay=how.decay)
        course = torch.optim.lr_scheduler.CosineAnnealingLR(rule, how.epochs * -(-len(taught) // how.batch))
        best, kept = torch.inf, router.state_dict()
        for _ in range(how.epochs):
            for part in taught[torch.randperm(len(taught), device=h.device)].split(how.batch):
                _step(router.train(), rule, h[part], tokens[part], wanted[part], how.push)
                course.step()
            with torch.no_grad():
                loss = F.binary_cross_entropy_with_logits(router.eval()(h[judged], tokens[judged]), wanted[judged])
            if loss < best:
                best, kept = loss, {name: tensor.clone() for name, tensor in router.state_dict().items()}
    router.load_state_dict(kept)
    return router


def _step(
    router: MetaRouter, rule: torch.optim.Optimizer, h: Tensor, tokens: Tensor, wanted: Tensor, push: float
) -> None:
    rule.zero_grad()
    logits = router(h, tokens)
    undecided = (0.3 - (logits.sigmoid() - 0.5).abs()).clamp_min(0).mean()
    (F.binary_cross_entropy_with_logits(logits, wanted) + push * undecided).backward()
    nn.utils.clip_grad_norm_(router.parameters(), 1.0)
    rule.step()


def rebuilt(state: dict[str, Tensor]) -> MetaRouter:
    """Return the router whose `state_dict` this is."""
    (count, width), dim = state["queries.weight"].shape, state["project.weight"].shape[1]
    with torch.random.fork_rng():
        router = MetaRouter(dim, count - 1, width)
    router.load_state_dict(state)
    return router.eval()
