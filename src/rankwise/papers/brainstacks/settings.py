"""What can be set about Brainstacks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from rankwise.config import Count, NotNegative, Positive, Share


@dataclass(frozen=True)
class StackSettings:
    """[adapter.dynamics] of Brainstacks."""

    rounds: Count = 2
    """Stacks a domain may get, one after another, each on what those before leave over."""
    min_improvement: NotNegative = 0.002
    """Fall of the validation loss from a round to the next below which there is no further one."""
    eval_every: Count = 50
    """Steps between two looks at the validation loss."""
    patience: Count = 4
    """Looks without a new best after which a round ends."""
    spike: Positive = 0.1
    """Rise of the validation loss above its best that ends a round at once."""
    directions: Annotated[int, Field(ge=0)] = 64
    """k, directions a site's earlier stacks write that a later domain may not write; 0: no projector. About out/64."""
    probes: Count = 400
    """Examples from which the directions are taken."""
    probe: Literal["previous", "new"] = "previous"
    """Whose examples: kept ones of earlier domains, or those of the domain about to be learnt."""
    memory: Count = 200
    """Training rows of each finished domain that are kept: for directions, for the router, for class means."""
    mode: Literal["router", "oracle", "ungated"] = "router"
    """Which stacks act at test time. router: each domain weighed for each prompt; oracle: told the domain, those it was
    learnt with; ungated: all."""
    threshold: NotNegative = 0.01
    """Fall of an example's loss that makes one more domain worth its while."""
    prior: Share = 0.2
    """Share of an example's own domain in what the router is to answer."""
    gate: Share = 0.12
    """Weight up to which a domain is left out altogether."""
    floor: Share = 0.0
    """Least weight of the first domain, for every prompt. Paper: 0.2 for its chat domain."""
    width: Count = 128
    """Width of the router. Paper: 512."""
    epochs: Count = 20
    """Passes of the router's training over the kept rows. Paper: 8, over ten times as many."""
    lr: Positive = 8e-4
    """Learning rate of the router."""
