from __future__ import annotations

from pathlib import Path

import pytest

from rankwise.config import load_config
from rankwise.errors import UsageError
from rankwise.sweeping.plan import make_plan


@pytest.fixture
def config(tmp_path) -> Path:
    path = tmp_path / "c.toml"
    path.write_text('seed = 5\nmethod = "lora"\n[train]\nsteps = 2\n')
    return path


def test_cells(config):
    plan = make_plan(
        config, {"train.lr": [0.1, 0.2], "adapter.rank": [4]}, methods=["lora", "mora"], seeds=3, tune_seeds=2
    )
    tuning = plan.tuning("mora")
    assert [(cell.values, cell.seed) for cell in tuning] == [
        ({"train.lr": lr, "adapter.rank": 4}, seed) for lr in (0.1, 0.2) for seed in (5, 6)
    ]
    assert len({cell.folder for cell in tuning}) == 4
    final = plan.final("mora", {"train.lr": 0.2, "adapter.rank": 4})
    assert [(cell.seed, cell.folder) for cell in final] == [(5, "mora-seed5"), (6, "mora-seed6"), (7, "mora-seed7")]


def test_the_config_of_a_cell(config):
    plan = make_plan(config, {"train.lr": [0.1, 0.2]}, overrides=["adapter.rank=3"], methods=["mora"])
    (tune, *_), (final, *_) = plan.tuning("mora"), plan.final("mora", {"train.lr": 0.2})
    one, two = (load_config(config, plan.overrides_of(cell)) for cell in (tune, final))
    assert (one.method, one.seed, one.train.lr, one.adapter.rank, one.stream.first_tasks) == ("mora", 5, 0.1, 3, 2)
    assert (two.train.lr, two.stream.first_tasks, two.train.threads, two.train.steps) == (0.2, None, 1, 2)
    whole = make_plan(config, {"train.lr": [0.1, 0.2]}, tune_tasks=0, overrides=["train.threads=2"])
    found = load_config(config, whole.overrides_of(whole.tuning("lora")[0]))
    assert (found.stream.first_tasks, found.train.threads) == (None, 2)


def test_nothing_is_picked_where_there_is_nothing_to_choose(config):
    assert make_plan(config, {}).tuning("lora") == []
    assert make_plan(config, {"train.lr": [0.1]}, overrides=["stream.validation=0"]).tuning("lora") == []


@pytest.mark.parametrize(
    ("grid", "options", "message"),
    [
        ({"train.lr": [0.1, -1.0]}, {}, "greater than 0"),
        ({"trian.lr": [0.1]}, {}, "did you mean 'train'"),
        ({"train.rl": [0.1]}, {}, "did you mean 'lr'"),
        ({"seed": [1, 2]}, {}, "use --seeds"),
        ({"method": ["lora"]}, {}, "use --methods"),
        ({"train.lr": [0.1, 0.2]}, {"overrides": ["stream.validation=0"]}, "test rows never pick"),
        ({"stream.validation": [0, 0.1]}, {}, "test rows never pick"),
        ({}, {"seeds": 0}, "--seeds 0"),
        ({}, {"tune_tasks": -1}, "--tune-tasks -1"),
        ({}, {"tune_seeds": 4}, "give 1 to 3"),
        ({}, {"methods": ["lora", "lora"]}, "given twice"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_starts(config, grid, options, message):
    with pytest.raises(UsageError, match=message):
        make_plan(config, grid, **options)
