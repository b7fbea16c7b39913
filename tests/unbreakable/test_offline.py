"""Nothing asks the network for anything: importing the package, and every command on what lies on this machine."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from fresh import SOURCE, python

WATCH = """
import os, sys
ASKED = {"socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr", "socket.sendto",
         "socket.sendmsg", "socket.bind", "urllib.Request", "http.client.connect", "ftplib.connect", "smtplib.connect"}
def watch(event, arguments):
    if event in ASKED and not str(arguments[-1]).startswith(("/", "\\0")):  # sockets of this machine's own files may be
        with open(os.environ["RANKWISE_ASKED"], "a") as log:
            log.write(f"{event} {arguments[1:]!r}\\n")
        raise OSError("no network in this test")
sys.addaudithook(watch)
"""
"""Put before everything as `sitecustomize`, so that it watches every process that is started."""
RUNNER = """
import json, sys
from rankwise.cli import main
print("codes", json.dumps([main(words) for words in json.load(sys.stdin)]))
"""
IMPORTS = """
import importlib, pkgutil, sys, rankwise
names = [found.name for found in pkgutil.walk_packages(rankwise.__path__, "rankwise.")]
for name in names:
    if not name.endswith("__main__"):
        importlib.import_module(name)
print(len(names))
"""
ALONE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY")
"""Variables that would forbid the network: they are unset here."""


@pytest.fixture
def watched(tmp_path: Path) -> Callable[..., tuple[str, list[str]]]:
    """Run Python with every attempt to reach a network noted and refused: (what it printed, the attempts)."""
    (tmp_path / "watch").mkdir()
    (tmp_path / "watch" / "sitecustomize.py").write_text(WATCH)
    log, alone = tmp_path / "asked", dict.fromkeys(ALONE)
    paths = {"PYTHONPATH": f"{tmp_path / 'watch'}{os.pathsep}{SOURCE}", "RANKWISE_ASKED": str(log)}
    # An empty cache: what a user's own cache holds must not be what spares the question.
    homes = {"HF_HOME": str(tmp_path / "cache"), "HOME": str(tmp_path)}

    def run(code: str, text: str = "") -> tuple[str, list[str]]:
        done = python("-c", code, folder=tmp_path, text=text, seconds=280, **alone, **paths, **homes)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout + done.stderr, log.read_text().splitlines() if log.exists() else []

    return run


def test_an_attempt_would_be_seen(watched) -> None:
    code = "import socket\ntry: socket.create_connection(('host.invalid', 80))\nexcept OSError as e: print(e)"
    said, asked = watched(code)
    assert "no network in this test" in said and len(asked) == 1


def test_importing_every_module_asks_nothing(watched) -> None:
    said, asked = watched(IMPORTS)
    assert int(said.splitlines()[0]) > 100 and not asked, asked


def test_every_command_asks_nothing(watched, writers, tmp_path: Path) -> None:
    """On images with the embedded base, and on texts with a base in a folder; a sweep with its own processes."""
    small = "train.steps = 1\ntrain.threads = 1\nadapter.rank = 2\nstream.validation = 0.2\n"
    digits = "stream.classes_per_task = 5\nstream.train_limit = 10\nstream.test_limit = 8\n"
    (tmp_path / "a.toml").write_text(f'method = "lora"\n{digits}{small}')
    rows = [json.dumps({"input": f"the cat {word}", "target": word}) for word in ("sits", "runs") for _ in range(6)]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    texts = f'stream.name = "texts"\nstream.train = "rows.jsonl"\nmodel.name = "{writers("gpt2")}"\n'
    (tmp_path / "b.toml").write_text(f'method = "lora"\n{texts}{small}')
    commands = [
        *(["methods"], ["show", "mora"], ["schema"]),
        *(["run", "a.toml", "--out", "runs/a"], ["run", "b.toml", "--out", "runs/b"]),
        *(["resume", "runs/a"], ["log", "runs/a"], ["evaluate", "runs/b"], ["path", "runs/a", "--alphas", "2"]),
        *(["merge", "runs/a", "--out", "merged"], ["export", "runs/b", "--out", "peft"]),
        ["merge", "peft", "--out", "back", "--base", str(writers("gpt2"))],
        *(["compare", "runs"], ["report", "runs/a"], ["undo", "runs/a"]),
        ["sweep", "a.toml", "--seeds", "1", "--out", "swept"],
    ]
    said, asked = watched(RUNNER, json.dumps(commands))
    codes = json.loads(next(line for line in said.splitlines() if line.startswith("codes"))[6:])
    assert not asked, asked
    assert codes == [0] * len(commands), said[-3000:]
