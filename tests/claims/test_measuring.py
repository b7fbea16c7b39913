"""Measuring: what is kept, what is taken over, what is not hidden."""

from __future__ import annotations

import json

import pytest

from rankwise.claims import claims_of, slugs
from rankwise.claims.harness import measuring
from rankwise.claims.harness.measuring import measure_all


def test_every_verdict_there_is(rows):
    found = {name: row["verdict"] for name, row in rows.items()}
    assert found == {
        "holds": "holds",
        "open": "undecided",
        "fails": "does not hold",
        "breaks": "does not hold",
        "absent": "not measured",
    }


def test_a_failure_is_shown_with_its_reason(rows):
    assert rows["breaks"]["errors"] == [f"seed {k}: NonFiniteError: step 3: loss is nan" for k in range(3)]
    assert rows["breaks"]["values"]["size"] == {"seeds": [None] * 3, "mean": None, "low": None, "high": None}
    assert rows["absent"]["missing"] == "no data here" and rows["absent"]["seeds"] == 0


def test_values_and_interval_are_those_of_the_seeds(rows):
    size = rows["open"]["values"]["size"]
    assert size["seeds"] == pytest.approx([0.7, 0.9, 1.1]) and size["mean"] == pytest.approx(0.9)
    assert size["high"] - size["mean"] == pytest.approx(4.3027 * 0.2 / 3**0.5, rel=1e-4)  # t of 2 degrees, 95 %
    assert rows["open"]["values"]["extra"]["seeds"] == [0, 1, 2]


def test_a_measurement_that_was_stopped_goes_on(room, measured, tmp_path):
    claims = [room["holds"], room["fails"]]
    first = measure_all(claims, None, 1, tmp_path / "kept")
    before = next(first)
    first.close()
    assert measured == [("1", 0), ("1", 1), ("1", 2)]
    again, _ = measure_all(claims, None, 1, tmp_path / "kept")
    assert measured == [("1", 0), ("1", 1), ("1", 2), ("3", 0), ("3", 1), ("3", 2)]
    assert again == before


def test_what_other_source_measured_is_measured_again(room, measured, tmp_path):
    for spoil in ({"source": "other"}, {"values": None}, {"seconds": "many"}):
        list(measure_all([room["holds"]], None, 1, tmp_path / "kept"))
        path = tmp_path / "kept" / "made-1-seed1.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **spoil}))
        measured.clear()
        list(measure_all([room["holds"]], None, 1, tmp_path / "kept"))
        assert measured == [("1", 1)], spoil


def test_the_number_of_seeds_can_be_given(room, tmp_path):
    (outcome,) = measure_all([room["holds"]], 5, 1, tmp_path / "kept")
    assert len(outcome.seeds) == 5


def test_several_processes_give_the_values_of_one(tmp_path):
    claims = claims_of("mora")[1:2]
    one, two = (next(measure_all(claims, 2, jobs, tmp_path / str(jobs))) for jobs in (1, 2))
    assert [seed.values for seed in one.seeds] == [seed.values for seed in two.seeds]
    assert len(list((tmp_path / "2").glob("mora-2-seed*.json"))) == 2


def test_the_digest_is_of_the_source():
    assert len(measuring.source_digest()) == 64 and measuring.source_digest() == measuring.source_digest()


@pytest.mark.parametrize("slug", slugs())
def test_a_file_holds_claims_of_its_own_name(slug):
    claims = claims_of(slug)
    assert claims and all(claim.slug == slug for claim in claims)
    assert len({claim.number for claim in claims}) == len(claims)
    assert all(claim.seeds >= 3 and claim.thresholds and claim.source and claim.statement for claim in claims)
    assert [claim.number for claim in claims] == sorted(claim.number for claim in claims)
