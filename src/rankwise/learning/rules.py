"""The optimisers of a phase: one for each part that takes parameters over, and one for the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from rankwise.config import TrainSettings

if TYPE_CHECKING:
    from rankwise.learning.learner import Learner


def optimizers_of(learner: Learner) -> list[torch.optim.Optimizer]:
    """Return the rules, each for its own share of what learns: those of the parts, and one for the rest."""
    rest, rules = learner.live(), []
    for strategy in learner.strategies:
        rule = strategy.optimizer(learner, rest)
        if rule is not None:
            rules.append(rule)
            taken = {p for group in rule.param_groups for p in group["params"]}
            rest = {name: p for name, p in rest.items() if p not in taken}
    rules += [_rest(learner, rest)] if rest else []
    for rule in rules:
        for group in rule.param_groups:
            group["peak"] = group["lr"]
    return rules


def keep_moments(rules: Sequence[torch.optim.Optimizer], before: Sequence[torch.optim.Optimizer]) -> None:
    """Give parameters that rules `before` had, too, what those remembered of them; others start afresh."""
    held = {parameter: moments for rule in before for parameter, moments in rule.state.items()}
    for rule in rules:
        for parameter in (p for group in rule.param_groups for p in group["params"] if p in held):
            rule.state[parameter] = held[parameter]


def _rest(learner: Learner, named: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
    groups = {"base.": learner.config.train.lr, "head.": learner.objective.lr}
    shares = [([p for n, p in named.items() if n.startswith(part)], lr) for part, lr in groups.items()]
    return learner.rule([{"params": share, "lr": lr} for share, lr in shares if share])


def rule_of(settings: TrainSettings, groups: Sequence[dict[str, Any]]) -> torch.optim.Optimizer:
    """Return the run's own rule over parameter groups with a learning rate each."""
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=settings.momentum, weight_decay=settings.weight_decay)
    beta1, beta2 = settings.betas
    return torch.optim.AdamW(groups, betas=(beta1, beta2), weight_decay=settings.weight_decay, fused=True)
