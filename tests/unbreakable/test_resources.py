"""Where the system gives no more - files, descriptors, memory, permission, the lock - a command says so, fails, and
leaves a folder from which the next one goes on.

Each case runs the real command in a fork of this process, on the small world of `benchmarks/_scenes.py`.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from rankwise.learning.ledger import Ledger

SCENES = ("run mora", "resume mora", "undo mora", "merge", "export", "path over", "report", "sweep", "claims over")
"""One of each command that writes."""
CAPABILITIES = 0x20080522  # version 3 of the structure


@pytest.fixture(scope="module")
def stage(crash) -> Iterator[tuple[Path, dict[str, Any]]]:
    """A place for the cases, and the scenes played through once, so that all they import is loaded."""
    with crash.world() as (place, scenes):
        yield place, {each.name: crash.rehearsed(each, place) for each in scenes if each.name in SCENES}


def command(*words: str) -> Callable[[Path], tuple[int, str]]:
    import _scenes

    return _scenes.command(*words)


def answer(act: Callable[[], tuple[int, str]]) -> tuple[int, str]:
    """Do `act` in a fork; return its exit code and what it said."""
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        said = "ended with a traceback"
        code = 99
        try:
            code, said = act()
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        finally:
            os.write(send, said[-4000:].encode())
            os._exit(code)
    os.close(send)
    _, status = os.waitpid(child, 0)
    with os.fdopen(receive, "rb") as pipe:
        return os.waitstatus_to_exitcode(status), pipe.read().decode()


def no_descriptors() -> None:
    lowest = os.open("/dev/null", os.O_RDONLY)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, lowest))


def short_files() -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))


def no_rights() -> None:
    """Let the permissions of files count, for the superuser too."""
    header, nothing = (ctypes.c_uint32 * 2)(CAPABILITIES, 0), (ctypes.c_uint32 * 6)()
    if ctypes.CDLL(None).capset(header, nothing):
        os._exit(77)


def closed(folder: Path) -> None:
    """Take the right to write from a folder and all below it."""
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)


def opened(folder: Path) -> None:
    folder.chmod(0o755)
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)


LIMITS: dict[str, tuple[Callable[[], None], str]] = {
    "descriptors": (no_descriptors, "Too many open files.*ulimit -n"),
    "file size": (short_files, "File too large; .*ulimit -f"),
    "permission": (no_rights, "Permission denied; check the permissions"),
}


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("name", SCENES)
def test_a_limit_is_named_and_the_next_command_goes_on(crash, stage, name, limit):
    place, plays = stage
    play, (set_limit, reason) = plays[name], LIMITS[limit]
    folder = crash._set(play.scene, place / "point")
    if limit == "permission":
        closed(folder)

    def act() -> tuple[int, str]:
        set_limit()
        return play.scene.act(folder)

    code, said = answer(act)
    if code == 77:
        pytest.skip("rights cannot be given up here")
    if limit == "permission":
        opened(folder)
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert code in (1, 2), said
    assert len(errors) == 1, said
    assert crash.re.search(reason, errors[0]), said
    assert list(crash._continued(play, folder, place / "next", done=False)) == []


def test_a_model_larger_than_a_file_may_be(tmp_path):
    """The configuration fits, the weights do not: safetensors has errors of its own."""
    from transformers import ViTConfig, ViTModel

    from rankwise.errors import StorageError
    from rankwise.surgery.plain import write_plain

    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    model = ViTModel(ViTConfig(**sizes), add_pooling_layer=False)

    def act() -> tuple[int, str]:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
        try:
            write_plain(model, None, tmp_path / "out", {})
        except StorageError as error:
            return 1, str(error)
        return 0, ""

    code, said = answer(act)
    assert code == 1, said
    assert "cannot be written: Error while serializing" in said
    assert "free space there, or name another place for temporary files with TMPDIR" in said
    assert list(tmp_path.iterdir()) == []


def test_memory_that_runs_out_is_named(crash, stage):
    place, plays = stage
    play = plays["run mora"]
    folder = crash._set(play.scene, place / "point")
    config = place / "home" / "mora.toml"
    words = ("run", str(config), "--set", "adapter.rank=4000000", "--out", "HERE/run", "--json")

    def act() -> tuple[int, str]:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20), used + (64 << 20)))
        return command(*words)(folder)

    code, said = answer(act)
    assert code == 1, said
    assert "error: memory ran out: " in said
    assert "train.batch_size" in said


@pytest.mark.parametrize("verb", ["methods", "schema", "log"])
def test_output_that_cannot_be_written_is_named(stage, verb):
    """/dev/full takes what is printed."""
    from rankwise import cli

    place, plays = stage
    words = [verb, str(plays["undo mora"].scene.before / "run")] if verb == "log" else [verb]

    def act() -> tuple[int, str]:
        import io

        sys.stderr = heard = io.StringIO()
        with Path("/dev/full").open("w") as sys.stdout:
            code = cli.main(words)
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return code, heard.getvalue()

    code, said = answer(act)
    assert code == 1
    assert said.startswith("error: ")
    assert "No space left on device; free space" in said


@pytest.mark.parametrize("name", ["run mora", "resume mora", "undo mora", "sweep"])
def test_a_second_process_is_refused_and_harms_nothing(crash, stage, name):
    place, plays = stage
    play = plays[name]
    folder = crash._set(play.scene, place / "point")
    (written,) = {Path(path).parts[0] for path in play.after}
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            with Ledger(folder / written).locked():
                os.write(send, b"locked")
                signal.pause()
        finally:
            os._exit(1)
    try:
        assert os.read(receive, 6) == b"locked"
        code, said = play.scene.act(folder)
        assert code == 1
        assert "another process is writing" in said
        assert crash.view(folder) == play.before
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert list(crash._continued(play, folder, place / "next", done=False)) == []


def test_a_clock_set_back_changes_nothing(crash, stage, monkeypatch):
    from rankwise.learning import ledger, run

    class Past(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime(1999, 1, 1, tzinfo=tz) - timedelta(days=1)

    place, plays = stage
    play = plays["resume mora"]
    folder = crash._set(play.scene, place / "point")
    monkeypatch.setattr(ledger, "datetime", Past)
    monkeypatch.setattr(run.time, "time", lambda: 0.0)
    assert play.scene.act(folder)[0] == 0
    assert crash.view(folder) == play.after
    last = Ledger(folder / "run").read_events()[-1]
    assert datetime.fromisoformat(last["time"]) < datetime(2000, 1, 1, tzinfo=UTC)
    assert command("log", "HERE/run")(folder)[0] == 0


def test_a_measuring_process_that_is_killed_is_named(crash, stage, monkeypatch):
    """A claim that kills its process: the command says which, and what to do."""
    from concurrent.futures.process import BrokenProcessPool

    from rankwise.claims.harness import measuring

    class Broken:
        def result(self) -> None:
            raise BrokenProcessPool

    place, plays = stage
    folder = crash._set(plays["claims over"].scene, place / "point")
    monkeypatch.setattr(measuring, "_start", lambda *_: Broken())
    code, said = command("claims", "--jobs", "1")(folder)
    assert code == 1
    assert "was killed; if memory ran out, give a smaller --jobs" in said
