from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import rankwise
from rankwise import cli
from rankwise.cli import main
from rankwise.errors import RankwiseError

SOURCE = Path(__file__).resolve().parents[2] / "src"
COMMANDS = (
    *("demo", "run", "resume", "log", "evaluate", "path", "undo", "merge", "export"),
    *("sweep", "compare", "methods", "show", "schema"),
)
HEAVY = ("torch", "transformers", "datasets", "accelerate", "numpy", "sklearn")

# A mistyped command line -> the name that must be offered instead. Each is one word away from a valid line.
TYPOS = [
    ("rnu good.toml", "run"),
    ("rnu --help", "run"),
    ("methds", "methods"),
    ("shwo mora", "show"),
    ("resmue runs/first", "resume"),
    ("shcema", "schema"),
    ("dmeo", "demo"),
    ("--versoin", "--version"),
    ("--hepl", "--help"),
    ("run godo.toml", "good.toml"),
    ("run good.toml --ot x", "--out"),
    ("run good.toml --jsn", "--json"),
    ("run good.toml --est seed=1", "--set"),
    ("run good.toml --set seed", "key=value"),
    ("run good.toml --set =3", "key=value"),
    ("run good.toml --set sede=1", "seed"),
    ("run good.toml --set train.epoch=2", "epochs"),
    ("run good.toml --set trian.lr=0.1", "train"),
    ("run good.toml --set train.lr=fast", "number"),
    ("run good.toml --set train.lr=-1", "greater than 0"),
    ("run good.toml --set train.schedule=cosinus", "cosine"),
    ("run good.toml --set adapter.rnak=4", "rank"),
    ("run good.toml --set adapter.rank=2.5", "integer"),
    ("run good.toml --set adapter.growth=apend", "append"),
    ("run good.toml --set stream.kind=class-incrementel", "class-incremental"),
    ("run good.toml --set stream.name=digts", "digits"),
    ("run good.toml --set objective.head=cosin", "cosine"),
    ("run good.toml --set model.pooling=meen", "mean"),
    ("run good.toml --set method=mroa", "mora"),
    ("run key.toml", "method"),
    ("run table.toml", "train"),
    ("run value.toml", "integer"),
    ("run method.toml", "lora-append"),
    ("run broken.toml", "TOML"),
    ("run good.toml good.toml", "run --help"),
    ("run", "run --help"),
    ("show", "show --help"),
    ("show lroa", "lora"),
    ("show LoRA", "did you mean 'lora'?"),
    ("run good.toml --set method=Lora", "did you mean 'lora'?"),
    ("Run good.toml", "did you mean 'run'?"),
    ("run good.toml --set stream.validation=1.0", "= 1.0: input should be a valid integer or less than 1"),
    ("run good.toml --set stream.validation=-1", "= -1: input should be greater than or equal to 0"),
    ("run good.toml --set train.device=gpu", "did you mean 'cuda'?"),
    ("show lora --jsno", "--json"),
    ("resume runs/frist", "first"),
    ("resume runs", "no run"),
    ("lgo runs/first", "log"),
    ("log runs/frist", "first"),
    ("evalute runs/first", "evaluate"),
    ("evaluate runs/frist", "first"),
    ("evaluate runs/first --taks a", "--task"),
    ("udno runs/first", "undo"),
    ("undo runs/frist", "first"),
    ("mrege runs/first --out x", "merge"),
    ("merge runs/frist --out x", "first"),
    ("merge runs/first", "--out"),
    ("merge runs/first --out good.toml", "is a file"),
    ("merge runs/first --out runs", "name a new folder"),
    ("exprot runs/first --out x", "export"),
    ("export runs/first --to pfet --out x", "peft"),
    ("export runs/frist --out x", "first"),
    ("compaer runs/first", "compare"),
    ("compare runs/frist", "first"),
    ("compare", "compare --help"),
    ("compare runs/first --baselin x", "--baseline"),
    ("swep good.toml", "sweep"),
    ("sweep godo.toml", "good.toml"),
    ("sweep good.toml --gird train.lr=[1]", "--grid"),
    ("sweep good.toml --grid train.lr", "write key="),
    ("sweep good.toml --grid train.lr=lgo(1,2,3)", "log"),
    ("sweep good.toml --grid train.rl=[1]", "lr"),
    ("sweep good.toml --grid train.lr=[-1]", "greater than 0"),
    ("sweep good.toml --methods lora,mroa", "mora"),
    ("sweep good.toml --seeds 0", "at least 1"),
    ("sweep good.toml --jobs 0", "at least 1"),
    ("sweep good.toml --set train.epoch=2", "epochs"),
    ("demo --sed 1", "--seed"),
    ("demo --seed one", "int"),
    ("demo --fsat", "--fast"),
]
FILES = {
    "good.toml": 'method = "lora"\n',
    "key.toml": 'methd = "lora"\n',
    "table.toml": "[tain]\nlr = 0.1\n",
    "value.toml": 'seed = "one"\n',
    "method.toml": 'method = "lora-apend"\n',
    "broken.toml": "method = lora\n",
    "runs/first/config.toml": 'method = "lora"\n',
}
IN_ONE_PROCESS = """
import contextlib, io, json, sys, time
from rankwise.cli import main
answers = {}
for line in json.loads(sys.argv[1]):
    out, err, start = io.StringIO(), io.StringIO(), time.process_time()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(line.split())
    heavy = [name for name in json.loads(sys.argv[2]) if name in sys.modules]
    seconds = time.process_time() - start
    answers[line] = {"code": code, "out": out.getvalue(), "err": err.getvalue(), "seconds": seconds, "heavy": heavy}
print(json.dumps(answers))
"""


def answers(folder: Path, lines: list[str]) -> dict[str, dict]:
    """What the command answers to each line, in one fresh process that has loaded nothing yet."""
    command = [sys.executable, "-c", IN_ONE_PROCESS, json.dumps(lines), json.dumps(HEAVY)]
    environment = os.environ | {"PYTHONPATH": str(SOURCE), "COLUMNS": "100"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def refusals(tmp_path_factory) -> dict[str, dict]:
    folder = tmp_path_factory.mktemp("typos")
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    found = answers(folder, [line for line, _ in TYPOS])
    written = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert written == FILES.keys(), "a refused line left something behind"
    return found


@pytest.mark.parametrize(("line", "remedy"), TYPOS)
def test_a_typo_is_one_line_with_the_nearest_name(refusals, line: str, remedy: str) -> None:
    answer = refusals[line]
    assert (answer["code"], answer["out"]) == (2, ""), answer
    assert answer["err"].count("\n") == 1, answer["err"]
    assert answer["err"].startswith("error: ")
    said, *_ = re.split(r"\(known:", answer["err"])  # the full list is no help in picking
    assert remedy in said, answer["err"]
    assert "Traceback" not in answer["err"]


def test_an_unknown_command_is_told_all_there_are(capsys) -> None:
    assert main(["zzzz"]) == 2
    said = capsys.readouterr().err
    assert said.endswith(f"(known: {', '.join(sorted(each.__name__ for each in cli.COMMANDS))})\n")
    assert "; see" not in said


def test_typos_are_told_at_once_and_without_torch(refusals) -> None:
    assert {line: answer["heavy"] for line, answer in refusals.items() if answer["heavy"]} == {}
    assert {line: answer["seconds"] for line, answer in refusals.items() if answer["seconds"] > 1} == {}


@pytest.fixture(scope="module")
def helps(tmp_path_factory) -> dict[str, dict]:
    lines = ["--help", *(f"{name} --help" for name in COMMANDS), "--version", ""]
    return answers(tmp_path_factory.mktemp("help"), lines)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_an_example_and_costs_nothing(helps, name: str) -> None:
    answer = helps[f"{name} --help"]
    assert (answer["code"], answer["err"], answer["heavy"]) == (0, "", [])
    assert f"Example: rankwise {name}" in answer["out"]
    assert answer["seconds"] < 0.5


def test_every_option_is_explained(helps) -> None:
    for name in COMMANDS:
        rows = [line.strip("│ ").split("  ") for line in helps[f"{name} --help"]["out"].splitlines() if "│ --" in line]
        assert all(len([cell for cell in row if cell.strip()]) > 1 for row in rows), (name, rows)


def test_help_lists_the_commands_and_is_what_an_empty_line_gets(helps) -> None:
    assert helps["--help"]["heavy"] == []
    assert all(f"\n│ {name} " in helps["--help"]["out"] for name in COMMANDS)
    assert (helps[""]["code"], helps[""]["out"]) == (0, helps["--help"]["out"])


def test_version(helps) -> None:
    assert (helps["--version"]["code"], helps["--version"]["out"]) == (0, f"{rankwise.__version__}\n")


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (RankwiseError("a: b; c"), 1, "error: a: b; c\n"),
        (
            PermissionError(13, "Permission denied", "x"),
            1,
            "error: [Errno 13] Permission denied: 'x'; check the permissions of the folder or choose another one\n",
        ),
        (KeyboardInterrupt(), 130, "stopped; what was written is whole, the same command goes on\n"),
        (MemoryError(), 1, f"error: memory ran out: no more to be had; {cli.SMALLER}\n"),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
            1,
            f"error: memory ran out: [enforce fail] DefaultCPUAllocator: can't allocate memory; {cli.SMALLER}\n",
        ),
    ],
)
def test_what_goes_wrong_is_told_without_a_traceback(monkeypatch, capsys, error, code: int, line: str) -> None:
    def fails(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(cli, "app", fails)
    assert main(["methods"]) == code
    assert capsys.readouterr().err == line


def test_an_error_of_ours_keeps_its_traceback(monkeypatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("a fault in the program")

    monkeypatch.setattr(cli, "app", fails)
    with pytest.raises(RuntimeError, match="a fault in the program"):
        main(["methods"])


def test_several_faults_are_several_lines(tmp_path, capsys) -> None:
    config = tmp_path / "c.toml"
    config.write_text("sede = 1\n[train]\nlr = 0\n")
    assert main(["run", str(config)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert all(line.startswith(f"error: {config}: ") for line in lines)


def test_out_cannot_be_below_a_file(tmp_path, capsys) -> None:
    config = tmp_path / "c.toml"
    config.write_text("seed = 1\n")
    assert main(["run", str(config), "--out", str(config / "r")]) == 2
    assert "is a file; name a folder" in capsys.readouterr().err


def test_a_reader_that_goes_away_is_no_crash() -> None:
    environment = os.environ | {"PYTHONPATH": str(SOURCE)}
    line = f"{sys.executable} -m rankwise schema | head -c 1"
    done = subprocess.run(
        ["bash", "-c", line], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.stdout, done.stderr) == ("{", "")
