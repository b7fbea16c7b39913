"""Every example runs as it stands: checked whole, and run with a few steps."""

from __future__ import annotations

from pathlib import Path

import pytest

import rankwise
from rankwise.api import resolve

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.toml"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs_as_it_stands(path, tmp_path):
    resolve(path)
    few = ["train.steps=2", "stream.train_limit=24", "stream.test_limit=10", "stream.validation=10"]
    results = rankwise.run(path, out=tmp_path / "run", overrides=few).results
    assert results["final_average"] is not None and (tmp_path / "run" / "results.json").is_file()


def test_there_are_examples():
    assert len(EXAMPLES) >= 4
