"""How features become answers: class rows that grow, and class means."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rankwise.adapters.bank import Bank, Spec
from rankwise.adapters.inits import kaiming
from rankwise.seeds import generator


def class_means(features: Tensor, labels: Tensor, classes: Sequence[int]) -> Tensor:
    """Return the mean direction of each class: features [N, d], labels [N] -> unit rows [len(classes), d].

    Features are brought to length one first, so that no example weighs more than another.
    """
    units = F.normalize(features.float(), dim=-1)
    onehot = (labels[:, None] == torch.tensor(list(classes), device=labels.device)).to(units.dtype)
    return F.normalize(onehot.T @ units, dim=-1)


class Head(nn.Module):
    """One row a class, appended as classes come; rows of classes that are not being learnt are frozen.

    `cosine`: logits = scale * cos(feature, row). `linear`: logits = row . feature + bias.
    """

    def __init__(self, dim: int, kind: str, scale: float, seed: int) -> None:
        """Make a head without classes over features [N, dim]."""
        super().__init__()
        self.dim, self.kind, self.scale, self.seed = dim, kind, scale, seed
        specs = {"weight": Spec(("class", "feature"), "head")}
        if kind == "linear":
            specs["bias"] = Spec(("class",), "head")
        self.bank = Bank(specs, "class")

    @property
    def classes(self) -> tuple[int, ...]:
        """Class ids that have a row, in the order of the rows."""
        return tuple(int(label) for label in self.bank.labels)

    def widen(self, classes: Sequence[int], rows: Tensor | None) -> None:
        """Give each new class a row: its row of `rows` [len(classes), dim], or a draw of (seed, class) if None."""
        for i, c in enumerate(classes):
            if c not in self.classes:
                row = kaiming(1, self.dim, generator(self.seed, "head", c)) if rows is None else rows[i : i + 1].cpu()
                bias = {"bias": torch.zeros(1)} if self.kind == "linear" else {}
                self.bank.append(str(c), {"weight": row, **bias})

    def learn(self, classes: Sequence[int]) -> None:
        """Make the rows of `classes` live and freeze all others."""
        self.bank.thaw([str(c) for c in classes if c in self.classes])

    def logits(self, features: Tensor, classes: Sequence[int]) -> Tensor:
        """Score features [N, d] against the rows of `classes`: [N, len(classes)]."""
        rows = torch.tensor([self.classes.index(c) for c in classes], device=features.device)
        weight = self.bank.tensor("weight").to(features.device)[rows]
        if self.kind == "linear":
            return F.linear(features, weight, self.bank.tensor("bias").to(features.device)[rows])
        return self.scale * F.linear(F.normalize(features, dim=-1), F.normalize(weight, dim=-1))


class ClassMeans(nn.Module):
    """Nearest class mean: a mean direction per (class, domain), and the class of the nearest one as the answer."""

    means: Tensor
    owners: Tensor

    def __init__(self, dim: int) -> None:
        """Start without means over features [N, dim]."""
        super().__init__()
        self.register_buffer("means", torch.empty(0, dim))
        self.register_buffer("owners", torch.empty(0, 2, dtype=torch.long))

    @property
    def classes(self) -> tuple[int, ...]:
        """Class ids that have a mean."""
        return tuple(sorted(set(self.owners[:, 0].tolist())))

    def put(self, classes: Sequence[int], domain: int, means: Tensor) -> None:
        """Store or replace the means [len(classes), dim] of `classes` as seen in task `domain`."""
        owners = torch.tensor([[c, domain] for c in classes], device=self.owners.device)
        kept = ~(self.owners[:, None] == owners[None]).all(-1).any(1)
        self.means = torch.cat([self.means[kept], means.to(self.means)])
        self.owners = torch.cat([self.owners[kept], owners])

    def logits(self, features: Tensor, classes: Sequence[int]) -> Tensor:
        """Return the cosine to the nearest mean of each of `classes`: [N, len(classes)]; -inf without a mean."""
        cosines = F.linear(F.normalize(features.float(), dim=-1), self.means)
        columns = [cosines[:, self.owners[:, 0] == c] for c in classes]
        nothing = cosines.new_full((len(features),), -torch.inf)
        return torch.stack([c.amax(1) if c.shape[1] else nothing for c in columns], 1)
