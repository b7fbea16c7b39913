"""CoDyRA: smaller updates at comparable use, and ranks that are really pruned."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import nn

from rankwise.adapters import Change, Gate, Identity, Pair, attach, banks_of, grow, pick_sites, read_weight
from rankwise.claims.harness.claim import Claim, Threshold
from rankwise.claims.toys import text
from rankwise.claims.toys.maps import TASKS, maps, mean_of_old
from rankwise.claims.toys.stand import Stand, stand
from rankwise.papers.codyra import Codyra, CodyraSettings, Importance
from rankwise.seeds import generator
from rankwise.strategies import Strategy

RANK, STEPS = 16, 500
TRAIN: dict[str, Any] = {"steps": STEPS, "schedule": "cosine", "betas": [0.9, 0.9999]}


@dataclass(frozen=True)
class Learnt:
    """What is left of a run over the stream of maps."""

    updates: list[float]
    """Frobenius norm of what each task added to the weight."""
    errors: list[list[float]]
    """errors[t][j]: relative error on task j after task t."""
    kept: list[int]
    """Ranks that were not pruned, by task."""

    @property
    def forgotten(self) -> float:
        """Mean error on the tasks before the last, after the last."""
        return mean_of_old(self.errors[-1])

    @property
    def just_learnt(self) -> float:
        """Mean error on each task right after it was learnt."""
        return sum(self.errors[t][t] for t in range(TASKS)) / TASKS


@cache
def learn(seed: int, lr: float, gated: bool, kappa_max: float = 5e-3) -> Learnt:
    """Learn the stream of `seed` with blocks that are folded after each task: gated and pruned, or plain."""
    stream = maps(seed)
    gate, part = (Importance(), Codyra(CodyraSettings(kappa_max), seed)) if gated else (Identity(), Strategy())
    host = put_on(stream.model(), gate, seed, lr)
    updates, errors = [], []
    for task in range(TASKS):
        before = weight_of(host)
        host.learn(task, part, lambda step, t=task: stream.loss(host.model, t, step), after=fresh(host, task))
        if not gated:
            grow(host.model, [Change("fold", host.task.name)], seed)
        updates.append(float((weight_of(host) - before).norm()))
        errors.append([stream.error(host.model, j) for j in range(TASKS)])
    return Learnt(updates, errors, part.kept.tolist() if isinstance(part, Codyra) else [RANK] * TASKS)


def put_on(model: nn.Module, gate: Gate, seed: int, lr: float) -> Stand:
    """Return a stand with an adapter of this gate on `model`, still without blocks."""
    attach(model, pick_sites(model), Pair(gate), {"method": "codyra", "seed": seed})
    return stand(model, TASKS, seed=seed, lr=lr, **TRAIN)


def fresh(host: Stand, task: int) -> list[Change]:
    """Return the change that starts the block of `task`."""
    return [Change("append", host.tasks[task].name, RANK)]


def weight_of(host: Stand) -> torch.Tensor:
    """Return the one weight of the model."""
    ((site, _),) = banks_of(host.model).values()
    return read_weight(host.model.get_submodule(site.path).get_submodule("base"), site)


def smaller(seed: int) -> dict[str, float]:
    """Measure claim 1 at both learning rates."""
    found: dict[str, float] = {}
    for lr in (5e-4, 5e-3):
        pruned, plain = learn(seed, lr, True), learn(seed, lr, False)
        found |= {
            f"size of an update / that of LoRA, lr {lr:g}": sum(pruned.updates) / sum(plain.updates),
            f"error on old tasks / that of LoRA, lr {lr:g}": pruned.forgotten / plain.forgotten,
            f"error just learnt, lr {lr:g}": pruned.just_learnt,
            f"error just learnt by LoRA, lr {lr:g}": plain.just_learnt,
        }
    return found


def pruned_ranks(seed: int) -> dict[str, float]:
    """Measure claim 2: on the stream of maps, and on a model of three layers for whether layers differ."""
    found = {
        f"share of ranks pruned, lr {lr:g}": 1 - sum(learn(seed, lr, True).kept) / (RANK * TASKS) for lr in (5e-4, 5e-3)
    }
    kept = kept_by_layer(seed)
    return {
        **found,
        "share pruned without a threshold": 1 - sum(learn(seed, 5e-3, True, 0.0).kept) / (RANK * TASKS),
        "layers with different ranks": float(len(set(kept))),
    }


def kept_by_layer(seed: int) -> list[int]:
    """Return how many of 16 ranks each layer of a 3-layer perceptron keeps after learning one random map."""
    rng = generator(seed, "layers")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(32, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 8))
    target, part = torch.randn(32, 8, generator=rng) / 32**0.5, Codyra(CodyraSettings(), seed)
    host = put_on(model, Importance(), seed, 5e-3)

    def loss(step: int) -> torch.Tensor:
        x = torch.randn(64, 32, generator=generator(seed, "x", step))
        return (host.model(x) - x @ target).square().mean()

    host.learn(0, part, loss, after=fresh(host, 0))
    return part.kept.tolist()


def on_text(seed: int) -> dict[str, float]:
    """Measure claim 3."""
    return text.against_lora(text.Setup("topics", "names", rank=16), "codyra", seed, 0.7)


SOURCE = "arXiv 2412.01004"
TOY = (
    "Stream of four rank-2 changes of a 32 -> 32 map, 16 ranks, 500 AdamW steps a task, folded after each task, "
    "kappa_max = 5e-3"
)

CLAIMS = (
    Claim(
        "codyra",
        "1",
        "a smaller update at comparable use",
        SOURCE,
        f"{TOY}: the mean Frobenius norm of an update is at most 0.7 of that of LoRA without gates, at learning rates "
        "5e-4 and 5e-3, and at 5e-3 the error on old tasks after the stream is at most 0.75 of LoRA's.",
        (
            Threshold("size of an update / that of LoRA, lr 0.0005", "<=", 0.7),
            Threshold("size of an update / that of LoRA, lr 0.005", "<=", 0.7),
            Threshold("error on old tasks / that of LoRA, lr 0.005", "<=", 0.75),
        ),
        smaller,
        note="It learns less, too: see the errors just learnt.",
    ),
    Claim(
        "codyra",
        "2",
        "ranks are pruned to exactly zero, and differently by layer",
        SOURCE,
        f"{TOY}: between 5 % and 80 % of the importances are exactly 0 after a task, none without a threshold, and the "
        "layers of a 3-layer perceptron keep different numbers of ranks.",
        (
            Threshold("share of ranks pruned, lr 0.0005", ">=", 0.05, 1.0),
            Threshold("share of ranks pruned, lr 0.0005", "<=", 0.8, 1.0),
            Threshold("share of ranks pruned, lr 0.005", ">=", 0.05, 1.0),
            Threshold("share of ranks pruned, lr 0.005", "<=", 0.8, 1.0),
            Threshold("share pruned without a threshold", "<=", 0.0, 1.0),
            Threshold("layers with different ranks", ">", 1.0, 1.0),
        ),
        pruned_ranks,
        note="The random start of the importances decides most of it: see the file of the method.",
    ),
    Claim(
        "codyra",
        "3",
        "on a real encoder it forgets 0.7 of what LoRA forgets, and ends higher",
        SOURCE,
        f"{text.TOPICS}, rank 16, head frozen at the embeddings of the class names: forgetting (positive part, mean "
        "over tasks 1 and 2) is at most 0.7 of sequential LoRA's, and the last accuracy is higher.",
        (
            Threshold("points forgotten, less 0.7 of LoRA's", "<=", 0),
            Threshold("last accuracy, less LoRA's", ">", 0),
        ),
        on_text,
        seeds=10,
        needs=text.missing,
        note="16 steps a task instead of 500: the threshold has few steps to act in.",
    ),
)
