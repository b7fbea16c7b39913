"""One step of training, readable from top to bottom."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from rankwise.adapters import Aux, using
from rankwise.errors import NonFiniteError
from rankwise.seeds import derive
from rankwise.strategies import Term
from rankwise.streams import Batch

if TYPE_CHECKING:
    from rankwise.learning.learner import Learner


def step(learner: Learner, terms: Sequence[Term], number: int, rate: float) -> dict[str, float]:
    """Do one optimiser step on the sum of `terms`; return each term's mean loss, over all processes.

    One backward follows each forward, under the same context (activation checkpointing runs the forward again during
    the backward). Gradients of micro-batches and processes add up to those of the whole batch.

    Args:
        learner: what learns; its live parameters change.
        terms: the losses, drawn for this step.
        number: steps done before, counted over the whole run: all draws are functions of it.
        rate: learning rate, as a factor on each parameter group's own.

    Raises:
        NonFiniteError: a loss or a gradient is not finite; nothing that learns was changed.

    """
    learner.rate = learner.config.train.lr * rate
    for rule in learner.optimizers:
        rule.zero_grad(set_to_none=True)
    apart = any(strategy.closed_forms for strategy in learner.strategies)
    first, later = ([t for t in terms if (apart and t.batch is None) is late] for late in (False, True))
    losses = {term.name: backward(learner, term, number) for term in first}
    live = list(learner.live().values())
    add_up(learner, live, list(losses.values()))
    values = {name: float(loss) for name, loss in losses.items()}
    refuse_non_finite(first, values, number)
    for strategy in learner.strategies:
        strategy.shape(learner, number)
    values |= {term.name: float(add_alone(learner, term, live, number)) for term in later}
    refuse_non_finite(later, values, number)
    clip(terms, live, learner.config.train.clip, number)
    for rule in learner.optimizers:
        for group in rule.param_groups:
            group["lr"] = group["peak"] * rate
        rule.step()
    for strategy in learner.strategies:
        strategy.settle(learner, number)
    for strategy in learner.strategies:
        strategy.follow(learner, number)
    learner.after_step(number)
    return values


def backward(learner: Learner, term: Term, number: int) -> Tensor:
    """Run forward and backward over this process's micro-batches of `term`; return their part of its mean loss."""
    if term.batch is None:
        return backward_alone(learner, term, number)
    total = torch.zeros((), device=learner.processes.device)
    for i, part, share in micro_batches(learner, term.batch):
        seed_draws(learner, term.name, number, i)
        part, aux = part.to(learner.processes.device), Aux()
        with using(learner.model, blocks=learner.acting, aux=aux, **learner.context(part, number)):
            loss = term.losses(part).sum() * share + aux.total() * (share * len(part))
            (term.weight * loss).backward()
        total += loss.detach()
    return total


def backward_alone(learner: Learner, term: Term, number: int) -> Tensor:
    """Run the backward of a loss of the parameters alone, in the first process; a constant has none."""
    seed_draws(learner, term.name, number, 0)
    loss = term.losses(EMPTY) * float(learner.processes.first)
    if loss.requires_grad:
        (term.weight * loss).backward()
    return loss.detach()


def add_alone(learner: Learner, term: Term, live: Sequence[nn.Parameter], number: int) -> Tensor:
    """Add the gradient of a loss of the parameters alone to those there are, in every process; return the loss."""
    seed_draws(learner, term.name, number, 0)
    loss, moving = term.losses(EMPTY), [p for p in live if p.grad is not None]
    if loss.requires_grad:
        found = torch.autograd.grad(term.weight * loss, moving, allow_unused=True)
        for parameter, gradient in zip(moving, found, strict=True):
            if gradient is not None and parameter.grad is not None:
                parameter.grad.add_(gradient)
    return loss.detach()


EMPTY = Batch({}, torch.empty(0, dtype=torch.long), torch.empty(0, dtype=torch.long))


def micro_batches(learner: Learner, batch: Batch) -> Iterator[tuple[int, Batch, float]]:
    """Yield (number, examples, what each weighs in the mean) for this process's micro-batches of `batch`.

    Empty ones are left out, unless the base is sharded: then the others would wait for this process's share of it, so
    it goes along with an example that weighs nothing.
    """
    parts = batch.cut(learner.processes.world * learner.config.train.accumulate)
    for i in learner.processes.share(len(parts)):
        if len(parts[i]):
            yield i, parts[i], 1 / len(batch)
        elif learner.processes.sharded:
            yield i, batch.rows(slice(0, 1)), 0.0


def seed_draws(learner: Learner, term: str, number: int, part: int) -> None:
    """Start torch's generators where (seed, step, term, micro-batch) says: no draw depends on what ran before."""
    torch.manual_seed(derive(learner.seed, "draw", number, term, part))


def add_up(learner: Learner, live: Sequence[nn.Parameter], losses: list[Tensor]) -> None:
    """Sum gradients and losses over processes; a process that had no example of its own joins with zeros."""
    if learner.processes.world > 1:
        for parameter in live:
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    learner.processes.add_up([*(p.grad for p in live if p.grad is not None), *losses])


def refuse_non_finite(terms: Sequence[Term], values: dict[str, float], number: int) -> None:
    """Stop before the rule if a loss is not finite, naming the step and the rows of its batch."""
    for term in terms:
        if not math.isfinite(values[term.name]):
            what = f"loss {term.name!r} is {values[term.name]} on rows {_rows(term)}"
            raise NonFiniteError(f"step {number}: {what}; lower train.lr, set train.clip, or look at these rows")


def clip(terms: Sequence[Term], live: Sequence[nn.Parameter], largest: float | None, number: int) -> None:
    """Scale gradients down to a global norm of `largest`; stop before the rule if that norm is not finite."""
    norm = nn.utils.get_total_norm([p.grad for p in live if p.grad is not None])
    if not math.isfinite(norm):
        rows = ", ".join(f"{term.name!r}: {_rows(term)}" for term in terms)
        raise NonFiniteError(
            f"step {number}: the gradient's norm is {float(norm)} on rows {rows}; lower train.lr, or look at them"
        )
    if largest is not None:
        nn.utils.clip_grads_with_norm_(live, largest, norm)


def _rows(term: Term) -> str:
    ids = [] if term.batch is None else term.batch.ids.tolist()
    return f"{ids[:8]}{'...' if ids[8:] else ''}"


def rate_at(schedule: str, warmup: float, done: int, total: int) -> float:
    """Return the learning rate's factor in step `done` of `total`: up over the warm-up, then along the schedule."""
    rising = math.ceil(warmup * total)
    if done < rising:
        return (done + 1) / (rising + 1)
    progress = (done - rising) / max(total - rising, 1)
    courses = {"cosine": 0.5 * (1 + math.cos(math.pi * progress)), "linear": 1 - progress, "constant": 1.0}
    return courses[schedule]
