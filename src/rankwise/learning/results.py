"""What a finished run leaves: results.json, matrix.csv and the adapter folder."""

from __future__ import annotations

import resource
import sys
from collections.abc import Mapping
from typing import Any

from rankwise import provenance
from rankwise.adapters import is_adapted, store
from rankwise.cards import LIMITS, USAGE, Card, Learnt
from rankwise.files import Content
from rankwise.learning import metrics
from rankwise.learning.learner import Learner
from rankwise.learning.ledger import Ledger
from rankwise.learning.run import Progress
from rankwise.storage import CARD, write_folder
from rankwise.tensors import tensor_writer

Cells = list[list[float | None]]


def finish(learner: Learner, progress: Progress, ledger: Ledger, base: Mapping[str, Any]) -> dict[str, Any]:
    """Write what the run learnt and how it scored; return the results."""
    if learner.processes.first:
        with learner.showing_deployed():  # until all is written: files are made from the tensors as they go out
            files = {**_artefact(learner, base), CARD: card_of(learner, progress, base).text()}
            write_folder(ledger.path / "adapter", files, kind=store.KIND)
    results = collect(learner, progress, ledger)
    if learner.processes.first:
        tasks = [task.name for task in learner.tasks]
        ledger.write_matrix(tasks, progress.zero_shot, results["matrix"])
        ledger.write_json("results.json", results)
    return results


def collect(learner: Learner, progress: Progress, ledger: Ledger) -> dict[str, Any]:
    """Return everything results.json holds; all scores follow from `matrix` and `zero_shot`."""
    held = progress.validation
    if learner.method.order == "at-once" and held:
        held = whole(held, len(learner.tasks))
    return {
        **scored(learner, progress),
        "validation_matrix": held,
        "validation_final_average": metrics.final_average(held),
        "diagnostics": progress.diagnostics,
        "diagnostics_by_site": progress.sites,
        "diagnostics_change": metrics.diagnostics_change(progress.diagnostics),
        "test_examples": [len(task.test) for task in learner.tasks],
        "steps": progress.total,
        "trainable_parameters": learner.learning or sum(parameter.numel() for parameter in learner.live().values()),
        "stored_bytes": ledger.stored_bytes(),
        "wall_seconds": round(progress.seconds, 3),
        "peak_memory_bytes": peak_memory(),
    }


def scored(learner: Learner, progress: Progress) -> dict[str, Any]:
    """Return what was learnt and how it scored."""
    matrix = progress.rows
    if learner.method.order == "at-once" and matrix:
        matrix = whole(matrix, len(learner.tasks))
    return {
        "method": learner.method.slug,
        "model": learner.backbone.name,
        "stream": learner.stream.name,
        "seed": learner.seed,
        "tasks": [task.name for task in learner.tasks],
        "metric": learner.objective.metric,
        "matrix": matrix,
        "zero_shot": progress.zero_shot,
        **metrics.summary(matrix, progress.zero_shot, [len(task.test) for task in learner.tasks]),
    }


def card_of(learner: Learner, progress: Progress, base: Mapping[str, Any]) -> Card:
    """Return the model card of what the run leaves."""
    kinds = {"adapter": "adapter", "base": "trained base", "head": "trained head"}
    return Card(
        kind=kinds[learner.method.live],
        library="rankwise",
        method=learner.method.slug,
        title=f"{learner.method.title}; {learner.method.paper}",
        base=base,
        usage=USAGE[learner.method.live].format(name=learner.backbone.name),
        limits=LIMITS,
        learnt=Learnt(learner.config.model_dump(), learner.stream.record, scored(learner, progress)),
    )


def whole(rows: Cells, tasks: int) -> Cells:
    """Return R with a row a task: where all were learnt at once, only the last row is known."""
    missing: Cells = [[None] * tasks for _ in range(tasks - len(rows))]
    return missing + rows


def peak_memory() -> int:
    """Return the most memory this process has held, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _artefact(learner: Learner, base: Mapping[str, Any]) -> dict[str, Content]:
    """Return the files of adapter/: the adapter (or the base, if that learnt) and what the objective adds."""
    files: dict[str, Content] = {
        provenance.FILE: provenance.content(base, [provenance.data_of(learner.stream.record)], [])
    }
    files |= store.files(learner.model, base) if is_adapted(learner.model) else {}
    if learner.method.live == "base":
        files["base.safetensors"] = tensor_writer(dict(learner.model.state_dict()))
    for strategy in learner.strategies:
        if tensors := strategy.artefact():
            files[f"{strategy.name}.safetensors"] = tensor_writer(tensors)
    names = list(learner.stream.class_names)
    return {
        **files,
        **learner.objective.files({"class_names": names, "base": dict(base), "method": learner.method.slug}),
    }
