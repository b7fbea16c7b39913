"""OSFT: the strong singular directions of every weight are frozen, the weak ones train in full (arXiv 2504.07097).

    W = U_h S_h V_h + U_l S_l V_l       at the start of each task; k = frozen directions
    base <- U_h S_h V_h;  live: U_l, S_l, V_l
    step:  project the gradients, AdamW, project the values:  U_l -= U_h (U_h^T U_l),  V_l -= (V_l V_h^T) V_h
    task end:  W <- U_h S_h V_h + U_l S_l V_l, one dense weight again

so that (W + Delta W) v = W v for every v in span(V_h), and no output moves along span(U_h). Both projections are
needed: AdamW rescales each coordinate, which leaves the subspace. Changed from the authors' code: their released
subclasses train no factor at all, and freeze a share of max(in, out) directions; here it is one of min(in, out).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from rankwise.adapters import Change, Init, adapter_of, banks_of
from rankwise.adapters.gates import RankWeights
from rankwise.adapters.inits import kaiming, zero_up
from rankwise.adapters.split import Split
from rankwise.errors import ConflictError
from rankwise.learning.recipe import Method
from rankwise.strategies import Host, Phase, Setting, Strategy
from rankwise.strategies.alignment import importance
from rankwise.streams import Task

Share = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True)
class OsftSettings:
    """How much of each weight is frozen, and what keeps the rest away from it."""

    frozen: Literal["fixed", "schedule", "importance"] = "fixed"
    """fixed: `frozen_ratio`; schedule: `frozen_step` times the number of tasks before; importance: min_ratio + I
    (max_ratio - min_ratio), I from the previous task's data (1 in the first task). The paper's text has the last, its
    released runs the second, its authors' library the first."""
    frozen_ratio: Share = 0.75
    """frozen = fixed: share of the min(in, out) directions that are frozen. Raise it to forget less and learn less."""
    frozen_step: Share | None = None
    """frozen = schedule: what each task adds to the share. Paper's long run: 0.07. Default: 1 / tasks."""
    min_ratio: Share = 0.1
    """Share frozen in a layer of no importance (the paper's mrr)."""
    max_ratio: Share = 0.8
    """Share frozen in a layer of average importance (the paper's trr)."""
    examples: Annotated[int, Field(ge=1)] = 128
    """Rows of the previous task that importance is measured on."""
    project_gradients: bool = True
    """Ablation: off."""
    project_parameters: bool = True
    """Ablation: off, and with AdamW the constraint leaks."""


class Osft(Strategy):
    """Splits every weight when a task begins, keeps the weak part off the strong one, and joins them when it ends."""

    name = "osft"
    Settings = OsftSettings
    reads = frozenset({"gradients", "live"})
    writes = {"gradients": "set", "live": "set"}
    needs_adapter = True
    plans = True

    def misfit(self, setting: Setting) -> str | None:
        """Refuse an adapter whose blocks come by themselves."""
        if setting.growth == "planned":
            return None
        return f"adapter.growth = {setting.growth!r}: it splits each weight itself; choose the method of that name"

    def begin_task(self, host: Host, task: Task) -> None:
        """Refuse another branch than its own."""
        branch = adapter_of(host.model).branch
        if not isinstance(branch, Split):
            raise ConflictError(f"dynamics 'osft' and a {type(branch).__name__}: choose the method of that name")

    def plan(self, host: Host, task: Task, done: Sequence[Mapping[str, Any]]) -> Phase | None:
        """Split each weight into k frozen directions and the others."""
        if done:
            return None
        frozen = self.frozen(host, task)
        sizes = {name: min(site.n_in, site.n_out) for name, (site, _) in banks_of(host.model).items()}
        kept = {name: min(int(frozen[name] * size), size - 1) for name, size in sizes.items()}
        return Phase(changes=tuple(Change("append", task.name, sizes[name] - kept[name], name) for name in sizes))

    def frozen(self, host: Host, task: Task) -> dict[str, float]:
        """Return the share of directions to freeze at each site."""
        chosen, names = self.settings, list(banks_of(host.model))
        if chosen.frozen == "importance":
            least, most = chosen.min_ratio, chosen.max_ratio
            rows = host.tasks[task.index - 1].train if task.index else task.train
            measured = importance(host, rows.take(range(min(chosen.examples, len(rows))))) if task.index else {}
            return {name: min(max(least + measured.get(name, 1.0) * (most - least), 0.0), 1.0) for name in names}
        step = 1 / len(host.tasks) if chosen.frozen_step is None else chosen.frozen_step
        share = chosen.frozen_ratio if chosen.frozen == "fixed" else min(step * task.index, 1.0)
        return dict.fromkeys(names, share)

    @torch.no_grad()
    def shape(self, host: Host, step: int) -> None:
        """Project the gradients."""
        if self.settings.project_gradients:
            project(host.model, lambda parameter: parameter.grad)

    @torch.no_grad()
    def settle(self, host: Host, step: int) -> None:
        """Project the values."""
        if self.settings.project_parameters:
            project(host.model, lambda parameter: parameter)

    def end_task(self, host: Host, task: Task) -> Sequence[Change]:
        """Join both parts in one dense weight."""
        return (Change("fold", task.name),)


FORBIDDEN: Mapping[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "B": lambda t, u, v: u @ (u.T @ t),
    "A": lambda t, u, v: (t @ v.T) @ v,
    "D": lambda t, u, v: u @ (u.T @ t @ v.T) @ v,
}
"""Live tensor -> (values, U_h, V_h) -> the part of the values that must not be."""


def project(model: nn.Module, values: Callable[[nn.Parameter], Tensor | None]) -> None:
    """Take out of `values` of each live tensor, in place, what lies along the frozen directions."""
    for _, bank in banks_of(model).values():
        fixed = bank.fixed.tensors()
        for name, parameter in bank.live.items():
            found = values(parameter)
            if found is not None and name in FORBIDDEN:
                found.sub_(FORBIDDEN[name](found, fixed["U_h"][0], fixed["V_h"][0]))


METHOD = Method(
    slug="osft",
    title="OSFT: full fine-tuning beside the strong singular directions",
    paper="arXiv 2504.07097 (ICLR 2026)",
    axis="form and dynamics: a part of each weight learns, projected",
    form=Split,
    gate=RankWeights,
    init=Init("osft", zero_up(kaiming), residual=True),
    dynamics=Osft,
    growth="planned",
    kinds=("linear", "transposed"),
    edits_base=True,
    identity_at_creation="close",
    identity_at_append="close",
    peft="merged",
    parameters="rank * (in + out + 1) a site, rank = the directions that are not frozen; none stored",
    refuses=(
        "embeddings and convolutions: their weights are no linear maps of a feature vector",
        "export as a LoRA after a task: the weight is dense again; merge it",
    ),
    defaults={"train": {"lr": 1e-4}},
)
