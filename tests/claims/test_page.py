"""The page, and that the one in the repository is written from what was measured of the claims as they stand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rankwise.claims import claims_of, slugs
from rankwise.claims.harness import page

ROOT = Path(__file__).parents[2]


def test_the_page_shows_every_claim_with_its_verdict(rows):
    text = page.page(list(rows.values()))
    assert "5 claims: 1 holds, 1 undecided, 2 does not hold, 1 not measured." in text
    for row in rows.values():
        assert f"## made {row['number']}: claim {row['number']}" in text
    assert "| size | 0.9 | 0.403 to 1.4 | 0.7, 0.9, 1.1 | <= 1 | undecided |" in text
    assert "| extra | 1 | -1.48 to 3.48 | 0, 1, 2 |  |  |" in text
    assert "**not measured**: no data here" in text and "Failed: seed 0: NonFiniteError" in text


def test_writing_keeps_the_rows_of_other_claims(rows, tmp_path):
    page.write(tmp_path, [rows["holds"], rows["fails"]])
    page.write(tmp_path, [{**rows["fails"], "verdict": "holds"}, {**rows["holds"], "seeds": 0}])
    kept = json.loads((tmp_path / "claims.json").read_text())
    assert [(row["number"], row["verdict"], row["seeds"]) for row in kept] == [("1", "holds", 3), ("3", "holds", 3)]
    assert (tmp_path / "CLAIMS.md").read_text() == page.page(kept)


def test_a_claim_that_is_gone_leaves_the_page(rows, tmp_path):
    page.write(tmp_path, [{**rows["fails"], "slug": "gone"}, rows["holds"]])
    assert [row["slug"] for row in json.loads((tmp_path / "claims.json").read_text())] == ["made"]


@pytest.fixture(scope="module")
def committed() -> list[dict]:
    return json.loads((ROOT / "claims.json").read_text(encoding="utf-8"))


def test_the_committed_page_is_generated(committed):
    assert (ROOT / "CLAIMS.md").read_text(encoding="utf-8") == page.page(committed)


def test_the_committed_rows_are_of_the_claims_as_they_stand(committed):
    rows = {(row["slug"], row["number"]): row for row in committed}
    claims = {(claim.slug, claim.number): claim for slug in slugs() for claim in claims_of(slug)}
    assert rows.keys() == claims.keys()
    for key, claim in claims.items():
        row = rows[key]
        assert {name: row[name] for name in page.stated(claim)} == page.stated(claim)
        if row["seeds"]:
            columns = {name: values["seeds"] for name, values in row["values"].items()}
            judged = [page.judgement(threshold, columns) for threshold in claim.thresholds]
            assert row["thresholds"] == json.loads(json.dumps(judged)) and row["seeds"] >= 3
