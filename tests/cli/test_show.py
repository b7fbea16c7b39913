from __future__ import annotations

import json
import tomllib

import pytest

from rankwise import api, papers
from rankwise.cli import main
from rankwise.config import load_config


@pytest.mark.parametrize("slug", papers.slugs())
def test_what_show_prints_is_the_config_that_runs(slug: str, tmp_path, capsys) -> None:
    assert main(["show", slug]) == 0
    file = tmp_path / "method.toml"
    file.write_text(capsys.readouterr().out)
    assert load_config(file) == api.resolve({"method": slug})[0]


def test_gate_options_carry_the_text_under_the_field(capsys) -> None:
    assert main(["show", "mora"]) == 0
    lines = capsys.readouterr().out.splitlines()
    at = lines.index("temperature = 0.02")
    assert lines[at + 1].startswith("#     tau of the softmax.")
    assert lines[lines.index('selection = "top-k"') + 2] == "#     Choices: top-k, all."
    assert "# mora: MoRA: self-activated rank-1 experts" in lines
    assert "# layers is not set" in lines


def test_json_holds_record_settings_and_docstring(capsys) -> None:
    assert main(["show", "mora", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    settings = {setting["key"]: setting for setting in shown["settings"]}
    assert shown["slug"] == "mora"
    assert shown["docstring"].startswith("MoRA: a mixture of self-activated rank-1 experts")
    assert shown["config"]["adapter"]["gate"]["top_k"] == settings["adapter.gate.top_k"]["value"] == 8
    assert settings["adapter.gate.level"]["choices"] == ["atom", "block"]
    assert settings["train.lr"]["doc"].startswith("Peak learning rate")
    assert all(setting["doc"] for setting in settings.values())


def test_no_key_of_the_config_is_left_out(capsys) -> None:
    assert main(["show", "lora", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    keys = {setting["key"] for setting in shown["settings"]}
    tables = {name: table for name, table in shown["config"].items() if isinstance(table, dict)}
    lists = {"stream.tasks", "adapter.gate", "adapter.form", "adapter.dynamics"}
    assert {f"{name}.{key}" for name, table in tables.items() for key in table} - lists <= keys
    assert {"seed", "method"} <= keys


def test_a_given_strategy_is_config_not_comment(capsys) -> None:
    assert main(["show", "replay"]) == 0
    assert [entry["kind"] for entry in tomllib.loads(capsys.readouterr().out)["strategy"]] == ["replay"]
