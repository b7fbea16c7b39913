"""Guarantee 5 for every method: a step cut into micro-batches is the same step to rounding, or the cut is refused."""

from __future__ import annotations

import pytest

from rankwise import papers
from rankwise.errors import ConflictError

SGD = {"steps": 2, "optimizer": "sgd", "lr": 0.001}  # AdamW would magnify the rounding of its first gradients


VIEWS = {"augment": ["crop", "flip"]}


@pytest.mark.parametrize(("slug", "views"), [*((slug, {}) for slug in papers.slugs()), ("replay", VIEWS)])
def test_micro_batches_do_not_matter(small, tmp_path, slug, views):
    whole = small.losses(small.run(tmp_path / "whole", slug, train={**SGD, **views}))
    try:
        parts = small.losses(small.run(tmp_path / "parts", slug, train={**SGD, **views, "accumulate": 4}))
    except ConflictError as refused:
        assert f"method {slug!r} has a loss over the whole batch" in str(refused)
        return
    assert len(parts) == len(whole)
    assert parts[0] == pytest.approx(whole[0], abs=1e-6)
    assert parts == pytest.approx(whole, abs=1e-5)
