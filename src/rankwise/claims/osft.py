"""OSFT: less is forgotten than by full fine-tuning at the same cost in new learning; a missing projection is seen."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn

from rankwise.adapters import Init, attach, banks_of, learn_base, pick_sites
from rankwise.adapters.gates import RankWeights
from rankwise.adapters.inits import kaiming, zero_up
from rankwise.adapters.split import Split
from rankwise.claims.harness.claim import Claim, Threshold
from rankwise.claims.toys.stand import Stand, stand
from rankwise.papers.osft import Osft, OsftSettings
from rankwise.seeds import generator
from rankwise.strategies import Strategy

WIDTH, HIDDEN, CLASSES, CLUSTERS = 32, 64, 10, 2
STEPS, BATCH, TESTED, LR, SPREAD, NOISE = 800, 64, 2000, 3e-3, 0.9, 0.9
SPLIT = Split(RankWeights(), init=Init("osft", zero_up(kaiming), residual=True))


def draw(seed: int, task: int, count: int, *keys: str | int) -> tuple[Tensor, Tensor]:
    """Return (x [count, 32], class [count]) of a task: ten classes of two Gaussian clusters each."""
    centres = torch.randn(CLASSES, CLUSTERS, WIDTH, generator=generator(seed, "centres", task)) * SPREAD
    rng = generator(seed, "rows", task, *keys)
    label, cluster = (torch.randint(0, n, (count,), generator=rng) for n in (CLASSES, CLUSTERS))
    return centres[label, cluster] + NOISE * torch.randn(count, WIDTH, generator=rng), label


def loss(model: nn.Module, seed: int, task: int, step: int) -> Tensor:
    """Return the cross-entropy on a training batch of `task`, among its own ten of the twenty outputs."""
    x, label = draw(seed, task, BATCH, "train", step)
    return nn.functional.cross_entropy(model(x)[:, CLASSES * task : CLASSES * (task + 1)], label)


@torch.no_grad()
def accuracy(model: nn.Module, seed: int, task: int) -> float:
    """Return the accuracy in percent on fresh rows of `task`."""
    x, label = draw(seed, task, TESTED, "test")
    return 100 * float((model(x)[:, CLASSES * task : CLASSES * (task + 1)].argmax(1) == label).float().mean())


@cache
def pretrained(seed: int) -> dict[str, Tensor]:
    """Return a perceptron's weights after it learnt the old task."""
    model = perceptron(seed)
    learn_base(model)
    stand(model, 2, steps=STEPS, lr=LR).learn(0, Strategy(), lambda step: loss(model, seed, 0, step))
    return model.state_dict()


def perceptron(seed: int) -> nn.Sequential:
    """Return a perceptron of three layers and a head, drawn."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = [(nn.Linear(n, HIDDEN), nn.ReLU()) for n in (WIDTH, HIDDEN, HIDDEN)]
        return nn.Sequential(*(module for layer in layers for module in layer), nn.Linear(HIDDEN, 2 * CLASSES))


def adapted(seed: int, frozen: float | None) -> tuple[float, float]:
    """Return the accuracies on the old and the new task after learning the new; frozen = None: all weights learn."""
    model = perceptron(seed)
    model.load_state_dict(pretrained(seed))
    host, part = started(model, seed, frozen)
    host.learn(1, part, lambda step: loss(model, seed, 1, step))
    return accuracy(model, seed, 0), accuracy(model, seed, 1)


def started(model: nn.Module, seed: int, frozen: float | None) -> tuple[Stand, Strategy]:
    """Return a stand on `model`, which learns as a whole or beside its strong directions, and the part for it."""
    if frozen is None:
        learn_base(model)
        return stand(model, 2, steps=STEPS, lr=LR), Strategy()
    attach(model, pick_sites(model, exclude=["6"]), SPLIT, {"method": "osft", "seed": seed})
    learn_base(model.get_submodule("6"))  # the head's rows of the new classes; nothing is asked of the others
    return stand(model, 2, steps=STEPS, lr=LR), Osft(OsftSettings(frozen_ratio=frozen), seed)


SHARES = (0.25, 0.5, 0.75)


def forgetting(seed: int) -> dict[str, float]:
    """Measure claim 1."""
    before = perceptron(seed)
    before.load_state_dict(pretrained(seed))
    start = accuracy(before, seed, 0)
    old, new = adapted(seed, None)
    found = {"old task, before": start, "old task, all weights learn": old, "new task, all weights learn": new}
    for share in SHARES:
        own_old, own_new = adapted(seed, share)
        found[f"points lost / those of full fine-tuning, {share:g} frozen"] = (start - own_old) / (start - old)
        found[f"points behind on the new task, {share:g} frozen"] = new - own_new
        found[f"old task, {share:g} frozen"] = own_old
    return found


def leak(seed: int, project_parameters: bool, steps: int = 200) -> float:
    """Return ||U_h^T U_l|| / ||U_l|| of one 24 -> 32 map after AdamW steps at 1e-2 with 12 directions frozen."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(24, 32))
    attach(model, pick_sites(model), SPLIT, {"method": "osft", "seed": seed})
    settings = OsftSettings(frozen_ratio=0.5, project_parameters=project_parameters)
    host, part = stand(model, 1, steps=steps, lr=1e-2), Osft(settings, seed)
    host.begin(0, part)
    for step in range(steps):
        rng = generator(seed, "rows", step)
        x, target = torch.randn(16, 24, generator=rng), torch.randn(16, 32, generator=rng)
        host.step(part, (model(x) - target).square().mean())
    ((_, bank),) = banks_of(model).values()
    low, high = bank.live["B"].detach(), bank.fixed.tensors()["U_h"][0]
    return float((high.T @ low).norm() / low.norm())


def projections(seed: int) -> dict[str, float]:
    """Measure claim 2."""
    names = {True: "leak with both projections", False: "leak without that of the values"}
    return {name: leak(seed, kept) for kept, name in names.items()}


SOURCE = "arXiv 2504.07097"

CLAIMS = (
    Claim(
        "osft",
        "1",
        "loses at most 60 % of what full fine-tuning loses, and learns as much",
        SOURCE,
        "A perceptron 32-64-64-64 with a head of 20 learns ten classes of two clusters, then ten others, at one rate "
        "(3e-3) and number of AdamW steps (800): with 0.25 or 0.5 of each weight's directions frozen it loses at most "
        "0.6 of the points on the old classes that it loses with all weights learning, and stays within 2 points on "
        "the new.",
        (
            Threshold("points lost / those of full fine-tuning, 0.25 frozen", "<=", 0.6),
            Threshold("points lost / those of full fine-tuning, 0.5 frozen", "<=", 0.6),
            Threshold("points behind on the new task, 0.25 frozen", "<=", 2.0),
            Threshold("points behind on the new task, 0.5 frozen", "<=", 2.0),
        ),
        forgetting,
    ),
    Claim(
        "osft",
        "2",
        "the projection of the values is needed beside that of the gradients",
        SOURCE,
        "One 24 -> 32 map, 12 directions frozen, 200 AdamW steps at 1e-2 on noise: without projecting the values "
        "||U_h^T U_l|| / ||U_l|| exceeds 0.05, with it it stays below 1e-6.",
        (
            Threshold("leak with both projections", "<", 1e-6, 1.0),
            Threshold("leak without that of the values", ">", 0.05, 1.0),
        ),
        projections,
    ),
)
