"""EWC beside other methods: what it holds of them, and where there is nothing to hold. Its sums: tests/papers."""

from __future__ import annotations

import pytest
import torch
from lab import ends, events

from rankwise.errors import ConflictError

EWC = {"kind": "ewc", "samples": 6}


@pytest.mark.parametrize("kind", ["image", "text"])
@pytest.mark.parametrize("method", ["lora", "mora", "finetune"])
def test_it_holds_factors_atoms_and_whole_bases_on_images_and_texts(lab, tmp_path, method, kind):
    keep = {"growth": "keep"} if method == "mora" else {}
    out = lab.run(tmp_path / "run", method, EWC, kind=kind, adapter=keep)
    held = {name for name in ends(out)[-1] if name.startswith("strategies/ewc/0/importance/")}
    assert held and not any("head" in name for name in held)
    importance = torch.cat([ends(out)[-1][name].flatten() for name in held])
    assert (importance >= 0).all() and importance.any()
    assert [set(e["losses"]) for e in events(out, "step")] == [{"classify"}] * 2 + [{"classify", "ewc"}] * 2


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        ("mora", "growth = 'append'.*nothing to hold; set adapter.growth = \"keep\""),
        ("independent", "growth = 'append'"),
        ("linear-probe", "trains the head alone"),
        ("joint", "order = 'at-once'"),
    ],
)
def test_where_there_is_nothing_to_hold_it_is_refused_by_name(lab, method, reason):
    with pytest.raises(ConflictError, match=f"strategy 'ewc'.*{reason}"):
        lab.learner(method, EWC)
