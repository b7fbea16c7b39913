"""DER++ beside other methods: stops and resumptions, and what it does not go with. Its buffer: tests/papers."""

from __future__ import annotations

import pytest
from lab import left

from rankwise.errors import ConflictError

PART = {"kind": "derpp", "size": 8, "batch_size": 4}


@pytest.mark.parametrize(("method", "kind"), [("lora", "image"), ("mora", "text"), ("finetune", "image")])
def test_each_step_in_a_sitting_of_its_own(lab, tmp_path, method, kind):
    whole = lab.run(tmp_path / "whole", method, PART, kind=kind)
    assert left(lab.in_sittings(tmp_path / "parts", method, PART, kind=kind)) == left(whole)


def test_two_buffers_and_blocks_of_ones_own_are_refused_by_name(lab):
    with pytest.raises(ConflictError, match="strategies 'derpp' and 'replay' both set replay buffer"):
        lab.learner("lora", PART, {"kind": "replay"})
    with pytest.raises(ConflictError, match="strategy 'derpp' and oracle = true"):
        lab.learner("independent", PART)
