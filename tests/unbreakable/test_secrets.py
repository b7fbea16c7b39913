"""Tokens and passwords planted wherever a user can leave one are found nowhere afterwards."""

from __future__ import annotations

import json
import traceback
from pathlib import Path

import pytest
from fresh import python

from rankwise.errors import RankwiseError, UsageError, masked

BODY = "Zq7Xw9Kd2Lm4Np6Rs8Tv"
"""What every planted token holds and nothing else does; it is looked for."""
FORMS = {
    "hub": f"hf_{BODY}abcdef",
    "code host": f"ghp_{BODY}0123456789",
    "fine-grained": f"github_pat_{BODY}_0123456789",
    "another code host": f"glpat-{BODY}",
    "model service": f"sk-proj-{BODY}1234",
    "chat": f"xoxb-123456-{BODY}",
    "web token": f"eyJhbGciOiJIUzI1NiJ9.{BODY}.c2ln",
    "registry": f"npm_{BODY}",
    "URL user": f"https://me:{BODY}@host.example/data",
    "URL password alone": f"https://:{BODY}@host.example/data",
    "bucket": f"s3://AKIAABCDEFGHIJKLMNOP:{BODY}@bucket/rows.jsonl",
    "signed URL": f"https://host.example/rows.jsonl?sig={BODY}&x=1",
    "query": f"https://host.example/rows.jsonl?a=1&access_token={BODY}",
}
PLACES = (
    'model.name = "{}"',
    'model.revision = "{}"',
    'stream.name = "{}"',
    'stream.train = "data/{}/rows.jsonl"',
    'stream.tasks = [{{name = "a", train = "{}"}}]',
    'adapter.sites = ["{}"]',
    'train.device = "{}"',
    'method = "{}"',
    'strategy = [{{kind = "{}"}}]',
    'strategy = [{{kind = "ewc", mode = "{}"}}]',
    'adapter.gate = {{"{}" = 1}}',
    'hf_token = "{}"',
)
ENVIRONMENT = (
    *("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_TOKEN", "GITHUB_TOKEN", "GH_TOKEN", "WANDB_API_KEY"),
    *("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "OPENAI_API_KEY", "API_KEY", "DATABASE_URL", "HTTPS_PROXY"),
    *("MLFLOW_TRACKING_PASSWORD", "SECRET", "MY_PRIVATE_THING"),
)
RUNNER = """
import json, sys
from rankwise.cli import main
codes = [main(words) for words in json.load(sys.stdin)]
print(json.dumps(codes))
"""


def child(folder: Path, commands: list[list[str]], **environment: str) -> tuple[list[int], str]:
    """Run commands in one fresh process; return their exit codes, and everything that was printed."""
    done = python("-c", RUNNER, folder=folder, text=json.dumps(commands), **environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stdout + done.stderr


def found_in(folder: Path) -> list[str]:
    """The files of a folder that hold the token, in their bytes or in their names."""
    files = [file for file in folder.rglob("*") if file.is_file()]
    return [str(file) for file in files if BODY.encode() in file.read_bytes() or BODY in str(file)]


def test_what_the_environment_holds_is_recorded_nowhere(tmp_path: Path) -> None:
    """A run, its log, report, checkpoint and merged model, with tokens in fifteen variables."""
    (tmp_path / "c.toml").write_text(
        'method = "lora"\nstream.classes_per_task = 5\nstream.train_limit = 8\nstream.test_limit = 8\n'
        'stream.validation = 0\nadapter.rank = 2\nadapter.sites = ["q_proj"]\ntrain.steps = 1\ntrain.threads = 1\n'
    )
    planted = dict(zip(ENVIRONMENT, [*FORMS.values(), BODY, f"plain {BODY}"], strict=True))
    planted["HTTPS_PROXY"] = f"http://me:{BODY}@proxy.example:3128"
    commands = [
        ["run", "c.toml", "--out", "run"],
        ["log", "run"],
        ["log", "run", "--json"],
        ["report", "run"],
        ["export", "run", "--out", "peft"],
        ["merge", "run", "--out", "merged"],
        ["evaluate", "run", "--task", "digist-1"],
        ["run", "c.toml", "--out", "run"],
    ]
    codes, said = child(tmp_path, commands, **planted)
    assert codes == [0, 0, 0, 0, 0, 0, 2, 2], said
    assert BODY not in said
    assert len([*tmp_path.rglob("*")]) > 20 and not found_in(tmp_path)


def test_what_a_config_or_a_command_line_holds_is_refused_and_not_repeated(tmp_path: Path) -> None:
    commands, count = [], 0
    for number, (name, form) in enumerate(FORMS.items()):
        for place in PLACES[number % 3 :: 3]:
            line = place.format(form.replace("https://", "https:/") if "rows.jsonl" in place else form)
            (tmp_path / f"{count}.toml").write_text(f"{line}\n")
            key, _, value = line.partition(" = ")
            commands += [["run", f"{count}.toml"], ["run", "empty.toml", "--set", f"{key}={value}"]]
            count += 2
        commands.append(["run", "empty.toml", "--set", form])
        commands.append(["run", f"{form}.toml" if "/" not in form else form])
        commands.append(["show", form])
        commands.append(["evaluate", f"runs/{name}", "--task", form])
    (tmp_path / "empty.toml").write_text("")
    before = {file.name for file in tmp_path.iterdir()}
    codes, said = child(tmp_path, commands)
    assert count >= 50 and set(codes) == {2}, said
    assert BODY not in said, [line for line in said.splitlines() if BODY in line]
    assert {file.name for file in tmp_path.iterdir()} == before


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_no_message_of_ours_shows_one(form: str) -> None:
    try:
        raise UsageError(f"cannot read {form!r}; look at {form}")
    except RankwiseError as error:
        assert BODY not in "".join(traceback.format_exception(error)) + repr(error.args)
        assert "cannot read" in str(error)


def test_a_name_given_to_python_is_masked_where_it_is_recorded(tmp_path: Path) -> None:
    import torch

    import rankwise

    model = rankwise.adapt(torch.nn.Sequential(torch.nn.Linear(3, 2)), "lora", rank=1)
    rankwise.export(model, tmp_path / "peft", base_name=FORMS["URL user"])
    assert not found_in(tmp_path)
    assert "***@host.example" in (tmp_path / "peft" / "adapter_config.json").read_text()


@pytest.mark.parametrize(
    "text",
    [
        "sentence-transformers/all-MiniLM-L6-v2",
        "hub:org/hf_model-small",
        "data/hf_internal_testing_of_models/rows.jsonl",
        "sk-learn-digits-2024-train-and-test",
        "/home/me/data/sk-learn/rows.jsonl",
        "https://host.example/rows.jsonl?part=1",
        "question : {text} answer : me@host.example",
        "6c5d1d4f0b7e4c1d8a9f2b3e4d5c6b7a8f9e0d1c",
        "runs/digits-mora-seed0-key=3",
        "<|endoftext|>",
    ],
)
def test_what_is_none_is_left_alone(text: str) -> None:
    assert masked(text) == text
