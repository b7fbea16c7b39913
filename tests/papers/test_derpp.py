"""The reservoir is a fair sample of all offers; scores are those of the step that stored them; two draws, two terms."""

from __future__ import annotations

import torch
from lab import begin, ends, events, learn, same, terms_of
from scipy.stats import chi2
from torch import Tensor

from rankwise import papers
from rankwise.learning.step import step
from rankwise.strategies.derpp import Derpp, DerppSettings, Reservoir

PART = {"kind": "derpp", "size": 8, "batch_size": 4}


def offered(size: int, count: int, seed: int = 0, batch: int = 7) -> Reservoir:
    """Return a reservoir that was offered rows 0 .. count - 1 of task 0, each with its number as score."""
    reservoir, rows = Reservoir(size, seed), torch.stack([torch.zeros(count).long(), torch.arange(count)], 1)
    for part in rows.split(batch):
        reservoir.offer(part, part[:, 1:].float())
    return reservoir


# the reservoir


def test_each_offer_is_held_with_equal_probability():
    counts = torch.zeros(40)
    for seed in range(600):
        counts[offered(10, 40, seed).rows[:, 1]] += 1
    share = 10 / 40
    statistic = ((counts - 600 * share) ** 2).sum() / (600 * share * (1 - share)) * 39 / 40
    assert counts.sum() == 6000 and chi2.sf(float(statistic), 39) > 1e-3


def test_it_holds_no_more_than_its_size_and_scores_stay_with_their_rows():
    for count in (3, 8, 30):
        reservoir = offered(8, count)
        assert len(reservoir.rows) == min(count, 8) and reservoir.offered == count
        assert torch.equal(reservoir.rows[:, 1].float(), reservoir.scores[:, 0])


def test_how_offers_are_cut_into_batches_does_not_matter():
    assert torch.equal(offered(8, 50, batch=1).rows, offered(8, 50, batch=50).rows)
    assert not torch.equal(offered(8, 50).rows, offered(8, 50, seed=1).rows)


def test_two_draws_of_a_step_are_independent_and_repeat():
    reservoir = offered(30, 30)
    pairs = [(reservoir.draw(10, "scores", s), reservoir.draw(10, "labels", s)) for s in range(60)]
    assert all(len(slots.unique()) == 10 for pair in pairs for slots in pair)
    shared = sum(len(set(a.tolist()) & set(b.tolist())) for a, b in pairs) / 60
    assert abs(shared - 10 * 10 / 30) < 0.8  # the mean of the overlap of independent draws
    assert torch.equal(reservoir.draw(10, "scores", 3), pairs[3][0])


# in a run


def test_the_method_is_lora_with_the_strategy(digits):
    lora, derpp = papers.method("lora"), papers.method("derpp")
    assert derpp.defaults == {"strategy": [{"kind": "derpp"}]}
    assert (derpp.gate, derpp.form, derpp.growth, derpp.live) == (lora.gate, lora.form, lora.growth, lora.live)
    end = ends(digits("derpp", strategy=[PART]).path)[-1]
    assert end["strategies/derpp/rows"].shape == (8, 2) and int(end["strategies/derpp/offered"]) == 15 * 8


def test_what_is_stored_are_the_scores_before_the_update_of_that_step(lab):
    learner = lab.learner("lora", {**PART, "size": 100})
    part = next(s for s in learner.strategies if isinstance(s, Derpp))
    task = begin(learner, learner.tasks[0])
    for number in range(3):
        terms = terms_of(learner, task, number, number)
        batch, seen = learner.batch, learner.seen
        with torch.no_grad():
            before = learner.objective.logits(learner.forward(batch), batch, seen)
        step(learner, terms, number, 1.0)
        with torch.no_grad():
            after = learner.objective.logits(learner.forward(batch), batch, seen)
        held, rows = part.buffer.scores[-len(batch) :], part.buffer.rows[-len(batch) :]
        assert torch.equal(held[:, list(seen)], before) and not torch.equal(before, after)
        assert torch.equal(task.train.ids[rows[:, 1]], batch.ids) and not rows[:, 0].any()


def test_the_distance_is_over_the_classes_known_when_stored(lab):
    learner = lab.learner("lora", {**PART, "size": 100, "batch_size": 40})
    done = learn(learner, 1)
    task = begin(learner, learner.tasks[1])
    _, scores, labels = terms_of(learner, task, done)
    assert (scores.name, labels.name) == ("derpp.scores", "derpp.labels")
    old, seen = sorted(learner.tasks[0].classes), learner.seen
    with torch.no_grad():
        found = scores.losses(scores.batch)
        now = learner.objective.logits(learner.forward(scores.batch), scores.batch, seen)
    part = next(s for s in learner.strategies if isinstance(s, Derpp))
    columns = [seen.index(c) for c in old]
    stored = part.buffer.scores[part.buffer.draw(40, "scores", done)][:, old]
    torch.testing.assert_close(found, (now[:, columns] - stored).square().mean(1))


def test_rehearsal_starts_with_the_second_step_of_the_stream(lab, tmp_path):
    out = lab.run(tmp_path / "run", "lora", PART)
    both = {"classify", "derpp.scores", "derpp.labels"}
    assert [set(event["losses"]) for event in events(out, "step")] == [{"classify"}, both, both, both]
    end = ends(out)[-1]
    assert end["strategies/derpp/rows"].shape == (8, 2) and int(end["strategies/derpp/offered"]) == 16


def test_without_factors_it_is_plain_training(lab, tmp_path):
    same_loss = {"train": {"optimizer": "sgd"}, "objective": {"classes": "task"}}
    plain = ends(lab.run(tmp_path / "plain", "lora", **same_loss))[-1]
    none = {**PART, "alpha": 0.0, "beta": 0.0}
    held = ends(lab.run(tmp_path / "none", "lora", none, **same_loss))[-1]
    assert same(plain, held, [name for name in plain if name.startswith("sites")])


def test_micro_batches_store_the_same_rows_and_scores(lab, tmp_path):
    sgd = {"optimizer": "sgd"}
    whole = ends(lab.run(tmp_path / "whole", "lora", PART, train=sgd))[-1]
    cut = ends(lab.run(tmp_path / "cut", "lora", PART, train={**sgd, "accumulate": 3}))[-1]
    assert torch.equal(whole["strategies/derpp/rows"], cut["strategies/derpp/rows"])
    torch.testing.assert_close(cut["strategies/derpp/scores"], whole["strategies/derpp/scores"], rtol=1e-4, atol=1e-4)


def test_a_restored_buffer_is_a_copy():
    part = Derpp(DerppSettings(size=4), 0)
    part.buffer = offered(4, 9)
    state = {name: tensor.clone() for name, tensor in part.state().items()}
    other = Derpp(DerppSettings(size=4), 0)
    other.restore(state)
    row: Tensor = state["rows"].clone()
    state["rows"].zero_()
    assert torch.equal(other.buffer.rows, row) and other.buffer.offered == 9


def test_a_row_seen_in_two_epochs_may_be_drawn_twice(lab, tmp_path):
    out = lab.run(tmp_path / "run", "lora", {**PART, "size": 32, "batch_size": 32}, train={"steps": 6})
    rows = ends(out)[-1]["strategies/derpp/rows"]
    assert len(rows.unique(dim=0)) < len(rows)
