from __future__ import annotations

import json
from importlib import metadata

from rankwise import papers
from rankwise.cli import main

CONTRACT = {
    "slug",
    "title",
    "paper",
    "axis",
    "identity_at_creation",
    "identity_at_append",
    "mergeable",
    "peft",
    "parameters",
    "refuses",
}


def test_json_has_every_method_with_every_key(capsys) -> None:
    assert main(["methods", "--json"]) == 0
    records = json.loads(capsys.readouterr().out)
    assert [record["slug"] for record in records] == papers.slugs()
    assert all(record.keys() >= CONTRACT for record in records)


def test_the_table_has_a_row_a_method(capsys) -> None:
    assert main(["methods"]) == 0
    title, header, *rows = capsys.readouterr().out.splitlines()
    assert (title, header.split()) == ("methods", ["method", "title", "paper", "axis", "merges", "PEFT"])
    assert [row.split()[0] for row in rows] == papers.slugs()
    mora = next(row for row in rows if row.startswith("mora "))
    assert mora.split()[-3:] == ["gate", "no", "-"]


def test_an_entry_point_that_cannot_be_loaded_is_named(monkeypatch, capsys) -> None:
    broken = metadata.EntryPoint("broken", "no_such_module:METHOD", papers.GROUP)
    monkeypatch.setattr(papers, "_plugins", lambda: {"broken": broken})
    assert main(["show", "broken"]) == 2
    said = capsys.readouterr().err
    assert "method 'broken': the entry point 'no_such_module:METHOD' of" in said and "repair or uninstall it" in said
