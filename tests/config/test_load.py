from __future__ import annotations

import subprocess
import sys
import tomllib

import pytest
from pydantic import BaseModel

from rankwise.config import Config, load_config, merged, parse_record, to_toml
from rankwise.errors import UsageError
from rankwise.papers.mora import SelfActivated


def test_an_empty_config_is_complete_and_written_toml_reads_back_equal(tmp_path):
    config = load_config({"stream": {"rotations": [0, 90.5]}, "strategy": [{"kind": "replay", "size": 7}]})
    path = tmp_path / "run.toml"
    path.write_text(to_toml(config))
    assert load_config(path) == config
    assert config.train.lr == 1e-3 and config.stream.name == "digits" and config.strategy[0]["size"] == 7


@pytest.mark.parametrize(
    ("stream", "name"),
    [
        ({"classes_per_task": 5}, "digits"),
        ({"train": "data/mail.csv"}, "mail"),
        ({"train": "/data/photos"}, "photos"),
        ({"train": "hub:org/reviews"}, "reviews"),
        ({"train": "hub:org/reviews:small"}, "reviews"),
        ({"train": "memory:rows"}, "rows"),
        ({"train": ".."}, "stream"),
        ({"tasks": [{"name": "a", "train": "one.jsonl"}]}, "one"),
        ({"tasks": [{"name": "a", "train": "one.jsonl"}, {"name": "b", "train": "two.jsonl"}]}, "stream"),
        ({"train": "mail.csv", "name": "digits"}, "digits"),
    ],
)
def test_a_stream_without_a_name_is_called_after_its_data_and_stays_so(stream, name):
    config = load_config({"stream": stream})
    assert config.stream.name == name
    written = tomllib.loads(to_toml(config))
    assert written["stream"]["name"] == name
    assert load_config(written, ["stream.train=moved.csv"] if "train" in stream else []).stream.name == name


def test_overrides_are_toml_values_and_reach_into_tables(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text("seed = 3\n[train]\nlr = 0.1\n")
    config = load_config(path, ["train.lr=2e-4", "method=lora", 'adapter.sites=["q_proj"]', "train.steps=5"])
    assert (config.seed, config.train.lr, config.method, config.train.steps) == (3, 2e-4, "lora", 5)
    assert config.adapter.sites == ["q_proj"]


def test_merged_lays_tables_over_tables_without_touching_either():
    under, over = {"a": {"x": 1, "y": 2}, "b": 3}, {"a": {"y": 5}, "c": 6}
    assert merged(under, over) == {"a": {"x": 1, "y": 5}, "b": 3, "c": 6}
    assert under == {"a": {"x": 1, "y": 2}, "b": 3}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"sed": 1}, "config: unknown key 'sed'; did you mean 'seed'?"),
        ({"train": {"lrr": 1}}, "unknown key 'train.lrr'; did you mean 'lr'?"),
        ({"train": {"lr": "fast"}}, "train.lr = 'fast': input should be a valid number"),
        ({"train": {"lr": 0}}, "train.lr = 0: input should be greater than 0"),
        ({"train": {"batch_size": True}}, "train.batch_size = True"),
        ({"train": {"schedule": "cosin"}}, "did you mean 'cosine'?"),
        ({"train": {"clip": float("nan")}}, "train.clip = nan"),
        ({"stream": {"clases_per_task": 2}}, "did you mean 'classes_per_task'?"),
        ({"stream": {"kind": "class-incrementl"}}, "did you mean 'class-incremental'?"),
        ({"stream": {"classes_per_task": 0}}, "greater than or equal to 1"),
        ({"stream": {"validation": 1.5}}, "stream.validation = 1.5"),
        ({"stream": {"rotations": [0, 400]}}, "less than or equal to 360"),
        ({"stream": {"name": "digit"}}, "did you mean 'digits'?"),
        ({"stream": {"target": "label"}}, "'target' has no meaning for the built-in 'digits'"),
        ({"stream": {"name": "x", "train": "a", "shots": 1, "train_limit": 2}}, "'shots' and 'train_limit'"),
        ({"stream": {"name": "x", "train": "a", "input": ["a", "b", "c"]}}, "stream.input"),
        ({"stream": {"name": "x", "tasks": [{"name": "a"}]}}, "'stream.tasks.0.train' is missing"),
        ({"stream": {"name": "x", "tasks": [{"name": "a", "train": "b", "trian": "c"}]}}, "did you mean 'train'?"),
        ({"adapter": {"layers": [1]}}, "adapter.layers"),
        ({"adapter": 3}, "adapter = 3"),
    ],
)
def test_what_is_wrong_is_named_with_file_key_value_and_remedy(values, said):
    with pytest.raises(UsageError) as caught:
        load_config(values)
    assert said in str(caught.value)
    assert all(line.startswith("config: ") for line in str(caught.value).splitlines())


def test_every_fault_is_reported_at_once():
    with pytest.raises(UsageError) as caught:
        load_config({"sed": 1, "train": {"lr": -1}})
    assert len(str(caught.value).splitlines()) == 2


def test_a_missing_file_names_the_nearest_and_a_broken_one_the_place(tmp_path):
    (tmp_path / "digits.toml").write_text("seed = = 3")
    with pytest.raises(UsageError, match=r"no such config file; did you mean 'digits.toml'"):
        load_config(tmp_path / "digit.toml")
    with pytest.raises(UsageError, match="line 1"):
        load_config(tmp_path / "digits.toml")
    with pytest.raises(UsageError, match="write key=value"):
        load_config({}, ["train.lr"])


def test_a_gate_is_checked_like_a_table():
    assert parse_record(SelfActivated, {"top_k": 4, "temperature": 1}, "gate").temperature == 1.0
    for values, said in [
        ({"topk": 3}, "did you mean 'top_k'"),
        ({"top_k": "3"}, "gate.top_k = '3'"),
        ({"scores": "sined"}, "gate.scores"),
        ({"temperature": 0}, "gate.temperature = 0: input should be greater than 0"),
    ]:
        with pytest.raises(UsageError, match=said):
            parse_record(SelfActivated, values, "gate")


def _sections(kind: type[BaseModel]) -> list[type[BaseModel]]:
    inner = [
        f.annotation
        for f in kind.model_fields.values()
        if isinstance(f.annotation, type) and issubclass(f.annotation, BaseModel)
    ]
    return [kind, *(section for part in inner for section in _sections(part))]


def test_every_key_is_documented_and_the_schema_is_closed():
    tables = {"model", "stream", "objective", "adapter", "train"}
    for section in _sections(Config):
        for name, field in section.model_fields.items():
            assert field.description or name in tables, f"{section.__name__}.{name} has no text under it"
        assert section.model_json_schema()["additionalProperties"] is False


def test_checking_a_config_loads_nothing_heavy():
    heavy = "{'torch', 'transformers', 'datasets', 'accelerate', 'sklearn', 'PIL'}"
    code = f"import sys, rankwise.config, rankwise.papers; print(sorted({heavy} & set(sys.modules)))"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


def test_toml_of_every_method_reads_back(tmp_path):
    from rankwise import papers
    from rankwise.api import resolve

    for slug in papers.slugs():
        config, _ = resolve({"method": slug})
        assert load_config(tomllib.loads(to_toml(config))) == config
