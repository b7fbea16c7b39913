"""All that flows from the learner to a site during one forward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rankwise.adapters.sites import Site


class Sink:
    """Collects what branches measure in a forward, as means over tokens, by (site, name).

    A forward that is repeated (activation checkpointing) must not count twice, so the learner only hands a sink to
    forwards without gradient.
    """

    def __init__(self) -> None:
        self._sums: dict[tuple[str, str], Tensor] = {}
        self._counts: dict[tuple[str, str], Tensor] = {}

    def put(self, site: str, name: str, values: Tensor, tokens: Tensor | None = None) -> None:
        """Add `values` [..., k], one row a token; rows where `tokens` [...] is False (padding) are left out."""
        rows = values.detach().float()
        rows = rows[tokens] if tokens is not None and tokens.shape == rows.shape[:-1] else rows.flatten(0, -2)
        key = (site, name)
        self._sums[key] = self._sums.get(key, torch.zeros(rows.shape[-1])) + rows.sum(0).cpu()
        self._counts[key] = self._counts.get(key, torch.zeros(1)) + rows.shape[0]

    def saw(self, site: Site, x: Tensor, delta: Tensor, tokens: Tensor | None) -> None:
        """Take note of what `site` read and added in a forward, raw; a sink that wants it says so in a subclass."""

    def sums(self) -> list[Tensor]:
        """Return the running sums and counts, to be added up in place over processes that measured the same names."""
        return [table[key] for table in (self._sums, self._counts) for key in sorted(table)]

    def means(self) -> dict[str, list[float]]:
        """Return each measured name's mean over tokens, then over the sites that measured it: {name: [k]}."""
        per_name: dict[str, list[Tensor]] = {}
        for (_, name), total in sorted(self._sums.items()):
            per_name.setdefault(name, []).append(total / self._counts[_, name].clamp_min(1))
        return {name: torch.stack(means).mean(0).tolist() for name, means in per_name.items()}

    @staticmethod
    def by_site(sinks: Sequence[Sink]) -> dict[str, dict[str, list[float]]]:
        """Return each site's own means over the tokens of all `sinks`, {site: {name: [k]}}.

        What not all of them measured in the same k places (each task has blocks of its own) is left out.
        """
        found: dict[str, dict[str, list[float]]] = {}
        for site, name in sorted({key for sink in sinks for key in sink._sums}):
            held = [sink for sink in sinks if (site, name) in sink._sums]
            if len({sink._sums[site, name].shape for sink in held}) == 1:
                total, count = (
                    torch.stack([table[site, name] for table in tables]).sum(0)
                    for tables in ([sink._sums for sink in held], [sink._counts for sink in held])
                )
                found.setdefault(site, {})[name] = (total / count.clamp_min(1)).tolist()
        return found


class Aux:
    """Collects losses that branches add to a step, with their graph: one value for each (site, name).

    An assignment, not a sum: a forward that is repeated (activation checkpointing) must not count twice.
    """

    def __init__(self) -> None:
        self._values: dict[tuple[str, str], Tensor] = {}

    def put(self, site: str, name: str, value: Tensor) -> None:
        """Set the loss `name` of `site`, a scalar with its weight in it: the mean over the examples of this forward."""
        self._values[site, name] = value

    def total(self) -> Tensor | float:
        """Return the sum of all losses; 0 without any."""
        return sum(self._values.values())


@dataclass(frozen=True)
class Context:
    """What a branch may read besides its input and its own tensors; frozen, one a forward.

    Outside a learner every site sees the default: all blocks act and nothing is measured.
    """

    blocks: tuple[str, ...] | None = None
    """Labels of the rank blocks that act; None: all of them; (): none, the bare base."""
    tokens: Tensor | None = None
    """[N, S] bool, True where a token is real; statistics ignore padding."""
    sink: Sink | None = None
    """Where diagnostics go; None: they are not computed."""
    draws: Mapping[str, Tensor] = field(default_factory=dict)
    """Values drawn once for an optimiser step, equal in all its forwards."""
    mix: Mapping[str, Tensor] | None = None
    """Block label -> weight of that block for each example [N], for gates that read it; None: all weigh 1."""
    aux: Aux | None = None
    """Where losses of the branches go; None: they are not computed."""
    fused: bool = True
    """Whether one autograd node may stand for an update (see `fused`); False: the reference, operation by operation."""
