"""One adapter a task with an oracle: a task's scores do not know that other tasks exist."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from digit_runs import SMALL, lower_half, read_json, stored

from rankwise import papers
from rankwise.adapters import banks_of
from rankwise.api import branch_of, learner_of, resolve
from rankwise.config import merged
from rankwise.learning.evaluate import score
from rankwise.learning.learner import Learner
from rankwise.learning.ledger import Ledger
from rankwise.learning.processes import Processes
from rankwise.learning.run import Watch, run
from rankwise.models import load_backbone
from rankwise.objectives import Classify
from rankwise.streams import Stream, build


def alone(stream: Stream, task: int, folder) -> Learner:
    """Learn one task of the stream as if it were all there is."""
    config, method = resolve(merged(SMALL, {"method": "independent"}))
    only = replace(stream, tasks=(replace(stream.tasks[task], index=0),))
    backbone = load_backbone("embedded:vit")
    objective = Classify(config.objective, backbone.dim, config.seed)
    processes = Processes.start(config.train)
    learner = Learner(config, method, branch_of(method, config.adapter), backbone, only, objective, [], processes)
    run(learner, Ledger(folder), Watch())
    return learner


def test_a_score_never_changes_after_its_task(digits):
    matrix = digits("independent").results["matrix"]
    assert lower_half(matrix)
    for j in range(3):
        assert len({row[j] for row in matrix[j:]}) == 1
    assert digits("independent").results["forgetting"] == 0


@pytest.mark.parametrize("task", [0, 2])
def test_a_task_is_learnt_as_if_alone(digits, tmp_path, task):
    whole = digits("independent")
    config, _ = resolve(merged(SMALL, {"method": "independent"}))
    stream = build(config.stream.model_dump(exclude_none=True), config.seed)
    learner = alone(stream, task, tmp_path)
    name = stream.tasks[task].name
    here = banks_of(whole.model)
    for site, (_, bank) in banks_of(learner.backbone.module).items():
        for factor in ("A", "B"):
            assert torch.equal(bank.view([name])[factor], here[site][1].view([name])[factor]), site
    assert score(learner, learner.tasks[0], learner.tasks[0].test) == whole.results["matrix"][-1][task]


def test_only_the_tasks_own_classes_are_ranked_and_only_its_block_acts(digits):
    whole = digits("independent")
    config, method = resolve(merged(SMALL, {"method": "independent"}))
    learner = learner_of(config, method)
    means = stored(whole.path, "head.safetensors")
    learner.objective.means.means, learner.objective.means.owners = means["means.means"], means["means.owners"]
    learner.backbone.module = whole.model
    for j, task in enumerate(learner.tasks):
        assert learner.blocks_for(task) == (task.name,)
        features = learner.features(task.test, (task.name,))
        own = learner.objective.answer(features, task.classes)
        assert set(own.tolist()) <= set(task.classes)
        assert float((own == task.test.labels).float().mean()) == pytest.approx(whole.results["matrix"][-1][j])


def test_blocks_are_kept_apart(digits):
    run_ = digits("independent")
    for _, bank in banks_of(run_.model).values():
        assert bank.labels == tuple(run_.results["tasks"]) and bank.size == 3 * 8
    assert read_json(run_.path, "adapter/head.json")["method"] == "independent"


def test_the_method_is_told_the_task():
    method = papers.method("independent")
    assert method.oracle and "test examples of unknown task" in method.refuses
    assert not any(papers.method(slug).oracle for slug in papers.slugs() if slug != "independent")
