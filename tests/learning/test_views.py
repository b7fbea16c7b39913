"""Random views in a run: training and rehearsal see them; what is scored, measured or stored is the picture itself."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

import rankwise
from rankwise.api import learner_of, resolve
from rankwise.errors import ConflictError
from rankwise.learning.learner import Learner
from rankwise.reporting.compare import compare
from rankwise.seeds import derive
from rankwise.streams.augment import crop
from rankwise.streams.digits import digits

BOTH = {"augment": ["crop", "flip"]}


def learner(small: Any, **train: Any) -> Learner:
    return learner_of(*resolve(small.config("replay", train=train)))


def differ(one: Any, other: Any) -> int:
    """How many rows of two batches differ."""
    assert torch.equal(one.ids, other.ids) and torch.equal(one.labels, other.labels)
    return sum(not torch.equal(a, b) for a, b in zip(*(x.inputs["pixel_values"] for x in (one, other)), strict=True))


def test_only_training_batches_and_draws_to_rehearse_are_views(small):
    plain, made = learner(small), learner(small, **BOTH)
    for task, same in zip(made.tasks, plain.tasks, strict=True):
        assert differ(made.loader(task).batch(0), plain.loader(same).batch(0)) >= 2  # of 4
        for seen, stored in zip(made.batches(task), plain.batches(same), strict=True):
            assert differ(seen, stored) == 0
        for split, other in ((task.train, same.train), (task.test, same.test)):
            assert torch.equal(made.features(split), plain.features(other))
    rows = torch.tensor([[0, 3], [1, 2], [0, 7], [1, 5]])
    assert differ(made.examples(rows), plain.examples(rows)) == 0
    assert differ(made.examples(rows, ("rehearse", 3)), plain.examples(rows, ("rehearse", 3))) >= 2


def test_a_rehearsed_view_depends_on_draw_step_and_row_alone(small):
    made, rows = learner(small, **BOTH), torch.tensor([[0, i] for i in range(12)])
    whole = made.examples(rows, ("rehearse", 3))
    pixels = whole.inputs["pixel_values"]
    for part in (rows[4:], rows.flip(0)[:5], torch.cat([rows[:3], rows[:2]])):
        found = made.examples(torch.cat([torch.tensor([[1, 0]]), part]), ("rehearse", 3))  # in order of their tasks
        assert torch.equal(found.inputs["pixel_values"][: len(part)], pixels[part[:, 1]])
    for draw in (("rehearse", 4), ("scores", 3)):
        assert differ(made.examples(rows, draw), whole) > 6
    assert differ(learner(small, **BOTH, accumulate=2, workers=2).examples(rows, ("rehearse", 3)), whole) == 0


def test_before_anything_is_learnt_scores_are_those_without_views_and_so_are_the_rows_kept(small, tmp_path):
    plain, seen = small.run(tmp_path / "plain", "replay"), small.run(tmp_path / "seen", "replay", train=BOTH)
    starts = [small.events(out)[0] for out in (plain, seen)]
    assert starts[0] == starts[1] and starts[0]["event"] == "start"
    assert small.losses(plain)[0] != small.losses(seen)[0]
    kept = [small.tensors(sorted((out / "checkpoints").iterdir())[-1]) for out in (plain, seen)]
    assert torch.equal(*(found["strategies/replay/rows"] for found in kept))


def test_views_are_recorded_and_a_difference_between_runs(small, tmp_path):
    small.run(tmp_path / "plain", "lora")
    seen = small.run(tmp_path / "seen", "lora", train=BOTH)
    assert 'augment = ["crop", "flip"]' in (seen / "config.toml").read_text()
    (table,) = compare([tmp_path])["tables"]
    labels = [row["label"] for row in table["rows"]]
    assert labels == ["lora train.augment=None", "lora train.augment=['crop','flip']"]


def test_texts_have_no_views(writers, tmp_path):
    rows = [{"text": f"the {word}", "label": word} for word in ("cat", "dog") for _ in range(10)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    stream = {"name": "words", "train": str(tmp_path / "rows.jsonl"), "classes_per_task": 2}
    config = {"method": "lora", "model": {"name": str(writers("bert"))}, "stream": stream, "train": BOTH}
    with pytest.raises(ConflictError, match=r"train\.augment = \['crop', 'flip'\] and stream 'words', which holds"):
        rankwise.run(config, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def five_digits(rows: Any, count: int, *, moved: bool = False) -> dict[str, Any]:
    """The first `count` pictures of 0 ... 4, as they are or each moved by up to a pixel each way."""
    labels = torch.tensor(list(rows.labels))
    kept = (labels < 5).nonzero().flatten()[:count]
    pictures = rows.inputs[kept]
    pictures = crop(pictures, [derive(9, "moved", i) for i in range(count)]) if moved else pictures
    return {"image": list(pictures.numpy()), "label": labels[kept].tolist()}


def test_crops_teach_where_training_digits_are_few_and_test_digits_are_moved(small, tmp_path):
    """Accuracy 0.33 without, 0.52 with crops on average over six seeds; each seed gains 0.18 or more."""
    train, test, _ = digits()
    data = {"few": five_digits(train, 40), "moved": five_digits(test, 200, moved=True)}
    stream = {"name": "moved", "train": "memory:few", "test": "memory:moved", "classes_per_task": 5, "validation": 0}

    def accuracy(seed: int, augment: list[str]) -> float:
        learning = {"steps": 200, "batch_size": 20, "lr": 0.003, "device": "cpu", "threads": 1, "augment": augment}
        base = {"name": str(small.base)}
        config = {"method": "finetune", "seed": seed, "model": base, "stream": stream, "train": learning}
        return rankwise.run(config, out=tmp_path / f"{seed}-{len(augment)}", data=data).results["final_average"]

    for seed in range(3):
        plain, cropped = accuracy(seed, []), accuracy(seed, ["crop"])
        assert cropped > plain + 0.1, (seed, plain, cropped)
