"""LwF beside other methods: blocks that move the function, and what cannot be distilled. Its losses: tests/papers."""

from __future__ import annotations

import pytest
from lab import begin, learn

from rankwise.errors import ConflictError

LWF = {"kind": "lwf"}
MANY = {"kind": "lwf", "form": "multi-class"}


def test_a_fresh_block_that_moves_the_function_is_pulled_back_at_once(lab):
    """mora's append changes what is answered, so the distance is not zero at the first step."""
    learner = lab.learner("mora", {**LWF, "weight": 1.0, "temperature": 1.0}, adapter={"gate": {"top_k": 2}})
    done = learn(learner, 1)
    task = begin(learner, learner.tasks[1])
    learner.model.eval()
    batch, classes = learner.loader(task).batch(0), learner.classes(task)
    outputs = learner.forward(batch)
    plain = learner.objective.losses(outputs, batch, classes)
    assert done and (learner.own(batch, classes) - plain).max() > 0


def test_what_cannot_be_distilled_is_refused_by_name(lab):
    with pytest.raises(ConflictError, match="strategy 'lwf' and oracle = true.*nothing to distil"):
        lab.learner("independent", LWF)
    with pytest.raises(ConflictError, match="strategy 'lwf' and order = 'at-once'"):
        lab.learner("joint", LWF)
    turned = {"classes_per_task": None, "rotations": [0, 90], "kind": "domain-incremental"}
    learner = lab.learner("lora", MANY, stream=turned)
    with pytest.raises(ConflictError, match="'lwf' with form = 'multi-class'.*use form = 'softmax'"):
        begin(learner, learner.tasks[0])
    learner = lab.learner("lora", LWF, stream=turned)
    assert begin(learner, learner.tasks[0])
