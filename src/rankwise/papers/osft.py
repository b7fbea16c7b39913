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

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rankwise.adapters import Change, Init, banks_of
from rankwise.adapters.gates import RankWeights
from rankwise.adapters.inits import kaiming, zero_up
from rankwise.adapters.split import Split, strong_parts, weakest
from rankwise.config import Count, Share
from rankwise.learning.recipe import Method
from rankwise.strategies import Confined, Confinement, Host, Phase
from rankwise.strategies.alignment import earlier_importance
from rankwise.streams import Task


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
    examples: Count = 128
    """Rows of the previous task that importance is measured on."""
    project_gradients: bool = True
    """Ablation: off."""
    project_parameters: bool = True
    """Ablation: off, and with AdamW the constraint leaks."""


class Osft(Confined):
    """Splits every weight when a task begins, keeps the weak part off the strong one, and joins them when it ends."""

    name = "osft"
    Settings = OsftSettings
    needs_growth = ("planned", "it splits each weight itself; choose the method of that name")
    needs_form = Split
    plans = True
    folds = True

    def plan(self, host: Host, task: Task, done: Sequence[Mapping[str, Any]]) -> Phase | None:
        """Split each weight into k frozen directions and the others."""
        if done:
            return None
        ranks = weakest(host.model, self.frozen(host, task))
        return Phase(changes=tuple(Change("append", task.name, rank, name) for name, rank in ranks.items()))

    def frozen(self, host: Host, task: Task) -> dict[str, float]:
        """Return the share of directions to freeze at each site."""
        chosen = self.settings
        if chosen.frozen == "importance":
            least, span = chosen.min_ratio, chosen.max_ratio - chosen.min_ratio
            found = earlier_importance(host, task, chosen.examples)
            return {name: min(max(least + i * span, 0.0), 1.0) for name, i in found.items()}
        step = 1 / len(host.tasks) if chosen.frozen_step is None else chosen.frozen_step
        share = chosen.frozen_ratio if chosen.frozen == "fixed" else min(step * task.index, 1.0)
        return dict.fromkeys(banks_of(host.model), share)

    def confines(self) -> tuple[bool, bool]:
        """Project gradients and values, as the settings say."""
        return self.settings.project_gradients, self.settings.project_parameters

    def confined(self, host: Host) -> Iterable[Confinement]:
        """Return the weak parts, and what takes the strong directions out of them."""
        return strong_parts(host.model)

    def end_task(self, host: Host, task: Task) -> Sequence[Change]:
        """Join both parts in one dense weight."""
        return (Change("fold", task.name),)


METHOD = Method(
    slug="osft",
    title="OSFT: full fine-tuning beside the strong singular directions",
    paper="arXiv 2504.07097 (ICLR 2026)",
    axis="form and dynamics: a part of each weight learns, projected",
    form=Split,
    gate=RankWeights,
    init=Init("osft", zero_up(kaiming), residual=True, bound=True),
    dynamics=Osft,
    growth="planned",
    kinds=("linear", "transposed"),
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
