"""One small run, learnt once by the real command and shared by all tests of the command line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "src"
SMALL = """
method = "lora"
[stream]
train_limit = 16
test_limit = 10
validation = 10
[train]
steps = 3
eval_batch_size = 64
"""


@dataclass(frozen=True)
class Finished:
    config: Path
    folder: Path
    done: subprocess.CompletedProcess[str]


def listen() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture(scope="session")
def start() -> Callable[..., subprocess.Popen[str]]:
    """Start the real command in a process of its own."""

    def started(*arguments: object) -> subprocess.Popen[str]:
        line = [sys.executable, "-m", "rankwise", *map(str, arguments)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        environment = os.environ | {"PYTHONPATH": str(SOURCE)}
        # Where the tests run in the background, the shell has SIGINT ignored, and a child would inherit that.
        return subprocess.Popen(line, env=environment, text=True, preexec_fn=listen, **pipes)

    return started


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, start: Callable[..., subprocess.Popen[str]]) -> Finished:
    root = tmp_path_factory.mktemp("cli")
    config, folder = root / "small.toml", root / "runs" / "small"
    config.write_text(SMALL)
    process = start("run", config, "--set", "seed=3", "--out", folder)
    out, err = process.communicate(timeout=120)
    return Finished(config, folder, subprocess.CompletedProcess(process.args, process.returncode, out, err))
