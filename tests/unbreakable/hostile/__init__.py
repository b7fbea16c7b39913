"""Hostile files, made the same each time: adapters, configs, data sets, bases and runs that mean harm or are broken.

A case writes itself into a folder of its own, below which everything it may touch lies. Beside that folder lies
`outside`, which holds sound files of every kind: what leads there is an escape.
"""

from __future__ import annotations

from pathlib import Path

from .adapters import adapters
from .archives import archives
from .bases import bases
from .case import CANARY, Case
from .configs import configs
from .mutations import mutations
from .pefts import pefts
from .pictures import pictures, png
from .runs import runs
from .saved_sets import saved_sets
from .tables import PARQUETS, sound_parquet, tables
from .tensors import tensor_cases

__all__ = ["CANARY", "PARQUETS", "cases", "png", "sound_parquet"]


def cases(sound: Path) -> list[Case]:
    """All of them, from the sound things in `sound`: ours, peft, base, run."""
    made = [
        *tensor_cases(sound),
        *adapters(sound),
        *pefts(sound),
        *configs(),
        *tables(),
        *archives(),
        *pictures(),
        *saved_sets(),
        *bases(sound),
        *runs(sound),
        *mutations(sound),
    ]
    assert len({case.name for case in made}) == len(made)
    return made
