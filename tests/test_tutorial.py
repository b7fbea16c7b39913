"""docs/add-a-method.md runs as it stands: its files are written, its commands and scripts are run, in order."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest
from safetensors.torch import load_file

from rankwise.cli import main

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "add-a-method.md"


@dataclass(frozen=True)
class Block:
    """A fenced block of the page: its language, the file it is (or none), its text."""

    language: str
    file: str
    text: str


def blocks() -> list[Block]:
    found = re.findall(
        r'^```(\w+)(?: title="([\w.-]+)")?\n(.*?)^```$', PAGE.read_text(), flags=re.MULTILINE | re.DOTALL
    )
    return [Block(*block) for block in found]


def lines_of(block: Block) -> list[list[str]]:
    """The words of the commands of a block which is no file; a Python block is one command of one word."""
    if block.language == "python":
        return [[block.text]]
    words = [shlex.split(line) for line in block.text.splitlines()]
    assert all(line[:2] == ["$", "rankwise"] for line in words), "a console block holds commands only"
    return [line[2:] for line in words]


FOLLOW = """
import contextlib, io, json, sys
from rankwise.cli import main
printed = []
for file, commands in json.load(sys.stdin):
    if file:
        open(file, "w", encoding="utf-8").write(commands)
    for words in [] if file else commands:
        with contextlib.redirect_stdout(io.StringIO()) as out:
            code = exec(words[0], {"__name__": "__main__"}) if len(words) == 1 else main(words)
        assert not code, (code, words)
        printed.append(out.getvalue())
print(json.dumps(printed))
"""
"""Follows the page in one process: a process for each of its commands would load torch eight times."""


def python(folder: Path, *words: str, stdin: str = "") -> str:
    """Run Python in `folder`, with the package of this clone, and return what it prints."""
    path = os.pathsep.join([str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": path},
        input=stdin,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, f"{words}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def followed(tmp_path_factory) -> tuple[Path, list[str]]:
    """The folder after the page was followed, and what each command printed."""
    folder = tmp_path_factory.mktemp("tutorial")
    steps = [(block.file, block.text if block.file else lines_of(block)) for block in blocks()]
    return folder, json.loads(python(folder, "-c", FOLLOW, stdin=json.dumps(steps)))


def test_the_page_has_its_parts():
    files = [block.file for block in blocks() if block.file]
    assert files == ["volume.py", "small.toml", "hush.py", "pyproject.toml"]
    assert sum(len(lines_of(block)) for block in blocks() if not block.file) == 6


def test_it_is_shown_and_listed(followed):
    shown, listed, *_ = followed[1]
    assert 'method = "volume"' in shown and "start_at = 1.0" in shown and "v of a new rank" in shown
    assert any(line.startswith("volume ") for line in listed.splitlines())


def test_the_runs_are_whole_and_the_part_did_its_work(followed):
    silent = {}
    for method in ("volume", "hush"):
        run = followed[0] / "runs" / method
        results = json.loads((run / "results.json").read_text())
        assert results["method"] == method and results["final_average"] is not None
        factors = load_file(run / "adapter" / "adapter.safetensors")
        silent[method] = sum(int((t == 0).sum()) for name, t in factors.items() if name.endswith(".v"))
    assert silent["hush"] > 0 == silent["volume"]


def test_a_resumed_run_needs_the_module_too(followed, monkeypatch, capsys):
    monkeypatch.chdir(followed[0])
    assert main(["resume", "runs/volume"]) == 2
    assert "method 'volume' does not exist" in capsys.readouterr().err


def test_an_installed_package_needs_no_import(followed):
    folder = followed[0]
    points = tomllib.loads((folder / "pyproject.toml").read_text())["project"]["entry-points"]["rankwise.methods"]
    assert points == {"volume": "volume:METHOD", "hush": "hush:METHOD"}
    installed = folder / "rankwise_volume-0.1.0.dist-info"  # what an installer writes beside the files
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: rankwise-volume\nVersion: 0.1.0\n")
    lines = [f"{name} = {target}" for name, target in points.items()]
    (installed / "entry_points.txt").write_text("\n".join(["[rankwise.methods]", *lines]) + "\n")
    ask = "from rankwise import papers; print(*papers.slugs(), papers.method('hush').title, sep=', ')"
    listed = python(folder, "-c", ask).strip().split(", ")
    assert {"volume", "hush"} <= set(listed) and listed[-1] == "LoRA with volumes that fall silent"
