"""Fail every command that writes at every call by which it changes the disk, and look at what it leaves.

    python benchmarks/crash.py [--only WORD] [--every N] [--out results/crash.json]

Each point is one command, one call of it and one way to fail (`_faults.MODES`). After it: saved folders are whole, each
one and each file is as the command found it or as it would have left it (tensors, JSON values, events; clocks aside), a
command that reports the failure returns 1 and names file, reason and remedy, and the next command succeeds and leaves
what it leaves where nothing failed, with no temporary file. Deaths are played within one process; at some calls they
are real as well (a fork that ends there), and must leave the same files.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from rankwise.cli import STOPPED

sys.path.append(str(Path(__file__).parent))

from _faults import KILLED, MODES, Died, Disk, possible
from _scenes import Scene, View, leftovers, scenes, small_world, view

RESULTS = Path(__file__).parent / "results" / "crash.json"
COMMITS = ("rename", "replace", "unlink", "rmdir", "ftruncate")
"""Calls that may change what a reader finds; a writer that does so by others leaves what no reader should find."""
FORKS = 97
"""Every so many deaths are real as well."""


@dataclass
class Play:
    """A scene as it goes where nothing fails."""

    scene: Scene
    calls: list[str]
    before: View
    after: View
    versions: dict[str, list[Any]] = field(default_factory=dict)
    """What a reader found of each file or saved folder, at any time; None: nothing."""
    escaped: list[str] = field(default_factory=list)
    judged: dict[str, list[str]] = field(default_factory=dict)
    """What was wrong after the next command, by the state that it found: equal states are looked at once."""

    def points(self) -> list[tuple[str, int]]:
        """Return every way to fail at every call: (mode, number)."""
        return [(mode, k) for mode in MODES for k, call in enumerate(self.calls, 1) if possible(mode, call)]


def rehearsed(scene: Scene, place: Path) -> Play:
    """Do a scene where nothing fails; note its calls and every state that it leaves on the way."""
    folder = _set(scene, place / "whole")
    before = view(folder)
    views = [before]
    disk = Disk(folder)
    disk.after = lambda call: views.append(view(folder)) if call in COMMITS else None
    with disk.ruling(*scene.writers):
        code, said = scene.act(folder)
    assert code == 0, f"{scene.name}: {said}"
    after = view(folder)
    names = {name for each in (*views, after) for name in each}
    versions = {name: [each.get(name) for each in (*views, after)] for name in names}
    return Play(scene, disk.calls, before, after, versions, disk.escaped)


def _set(scene: Scene, folder: Path) -> Path:
    """Make the state before a scene."""
    shutil.rmtree(folder, ignore_errors=True)
    return shutil.copytree(scene.before, folder) if scene.before else _made(folder)


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def failed(play: Play, mode: str, at: int, place: Path) -> list[str]:
    """Fail one call of a scene; return what is wrong afterwards, nothing if all is well."""
    folder = _set(play.scene, place / "point")
    disk, code, said = Disk(folder, mode, at), KILLED, ""
    with disk.ruling(*play.scene.writers), suppress(Died):
        code, said = play.scene.act(folder)
    if not disk.struck:
        return [f"call {at} was not made"]
    try:
        now = view(folder)
    except Exception as error:  # whatever it is, it is what this looks for
        return [f"cannot be opened: {type(error).__name__}: {error}"]
    wrong = [*_answered(mode, code, said), *_found(play, now, code, said)]
    state = f"{code == 0} {state_of(folder, now)}"
    if state not in play.judged:
        play.judged[state] = list(_continued(play, folder, place / "next", done=code == 0))
    return wrong + play.judged[state]


def state_of(folder: Path, found: View) -> str:
    """Return all that the next command can tell from what is below `folder`, without clocks and tokens."""
    names = sorted(str(path.relative_to(folder)).split(".rankwise-tmp-")[0] for path in folder.rglob("*"))
    torn = [not path.read_bytes().endswith(b"\n") for path in folder.rglob("*.jsonl")]
    return json.dumps([names, torn, found], sort_keys=True)


def _continued(play: Play, folder: Path, place: Path, *, done: bool) -> Iterator[str]:
    """Do each of the next commands on a copy; yield what is wrong then."""
    for name, (act, wanted) in play.scene.after.items():
        if done and name == "again":
            continue
        copy = shutil.copytree(folder, place)
        for problem in _next(act, copy, play.after if wanted is None else wanted):
            yield f"then {name}: {problem}"
        shutil.rmtree(copy)


def _answered(mode: str, code: int, said: str) -> list[str]:
    """Say what is wrong with how a command ended.

    A death says nothing; an error names file, reason and remedy; a stop says how to go on.
    """
    if mode in ("kill", "tear"):
        return [] if code == KILLED else [f"went on after its death, exit code {code}"]
    if mode == "stop":
        told = re.search("^stopped; .+", said, re.MULTILINE)
        return [] if code == STOPPED and told else [f"exit code {code}: {said!r}"]
    reason = "Input/output error; " if mode == "broken" else "No space left on device; "
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    if code == 0:
        return [f"exit code 0, but: {line}" for line in errors]
    told = len(errors) == 1 and re.fullmatch(f"error: .+: .*{reason}.+", errors[0])
    return [] if code == 1 and told else [f"exit code {code}: {said!r}"]


def _found(play: Play, now: View, code: int, said: str) -> list[str]:
    """Say what a reader finds that should not be there."""
    wrong = [name for name in now.keys() | play.versions.keys() if not _known(play, name, now.get(name))]
    told = {name for name in play.after if name.endswith(".html")} if "no report was written" in said else set()
    undone = sorted(name for name in play.after.keys() - told if now.get(name) != play.after[name]) if code == 0 else []
    return [f"neither old nor new: {name}" for name in wrong] + [f"exit code 0, but not done: {n}" for n in undone]


def _known(play: Play, name: str, value: Any) -> bool:
    """Say whether a file or folder was like this at some time where nothing failed; events: as far as they go."""
    known = play.versions.get(name, [])
    if name.endswith(".jsonl") and value is not None:
        return any(each is not None and each[: len(value)] == value for each in known)
    return value in known


def _next(act: Any, folder: Path, wanted: View) -> list[str]:
    """Do the next command; say what is wrong with it and with what it leaves."""
    try:
        code, said = act(folder)
        wrong = [] if code == 0 else [f"exit code {code}: {said!r}"]
        now = view(folder)
    except Exception as error:  # as above
        return [f"{type(error).__name__}: {error}"]
    differs = sorted(name for name in now.keys() | wanted.keys() if now.get(name) != wanted.get(name))
    wrong += [f"differs: {', '.join(differs[:5])}"] if differs and not wrong else []
    return wrong + [f"left behind: {name}" for name in leftovers(folder)]


def really(play: Play, mode: str, at: int, place: Path) -> list[str]:
    """Die in earnest at one call, in a fork, and compare the files with those that the played death leaves."""
    seen = []
    for name in ("real", "played"):
        folder = _set(play.scene, place / "death")
        child = os.fork() if name == "real" else 0
        if child:
            os.waitpid(child, 0)
        else:
            try:
                with Disk(folder, mode, at, really=name == "real").ruling(*play.scene.writers):
                    play.scene.act(folder)
            except Died:
                pass
            finally:
                if name == "real":
                    os._exit(0)
        seen.append(state_of(folder, view(folder)))
    return [] if seen[0] == seen[1] else ["a real death leaves other files than a played one"]


@dataclass
class Outcome:
    """What came of failing a scene."""

    calls: int
    bad: list[str]
    counts: Counter[str] = field(default_factory=Counter)
    """Points by mode."""
    deaths: int = 0
    """Deaths that were real as well."""
    states: int = 0
    """Different states from which the next command was tried."""


@contextmanager
def world() -> Iterator[tuple[Path, list[Scene]]]:
    """Give a place for points, in memory where there is such a place, and the scenes."""
    torch.set_num_threads(1)
    home = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=home) as name:
        place = Path(name)
        with small_world(_made(place / "scratch")):
            yield place, list(scenes(_made(place / "home")))


def fail_all(scene: Scene, place: Path, every: int, first: int = 0) -> Outcome:
    """Fail a scene at every so many of its points, beginning with number `first`."""
    play = rehearsed(scene, place)
    done = Outcome(len(play.calls), [f"{scene.name}: past the calls: {change}" for change in play.escaped])
    for number, (mode, at) in enumerate(play.points()[first::every]):
        wrong = failed(play, mode, at, place)
        if number % FORKS == 0 and mode in ("kill", "tear"):
            done.deaths, wrong = done.deaths + 1, wrong + really(play, mode, at, place)
        done.counts[mode] += 1
        done.bad += [f"{scene.name}: {mode} at {at} ({play.calls[at - 1]}): {text}" for text in wrong]
    done.states = len(play.judged)
    return done


def main(arguments: Sequence[str] | None = None) -> int:
    """Fail all points; return 1 if one of them was bad."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="scenes whose name has this in it")
    parser.add_argument("--every", type=int, default=1, help="every so many points (default 1: all)")
    parser.add_argument("--out", type=Path, help="write the counts as JSON, as in benchmarks/results/crash.json")
    args = parser.parse_args(arguments)
    began, found = time.process_time(), dict[str, Outcome]()
    with world() as (place, all_scenes):
        for scene in all_scenes:
            if args.only not in scene.name:
                continue
            start = time.process_time()
            done = found[scene.name] = fail_all(scene, place, args.every)
            told = f"{done.calls:5} calls{sum(done.counts.values()):6} points{done.states:5} states"
            print(f"{scene.name:22}{told}{time.process_time() - start:7.1f} s", flush=True)
            for text in done.bad:
                print(f"  BAD {text}", flush=True)
    counts = sum((done.counts for done in found.values()), Counter[str]())
    bad = [text for done in found.values() for text in done.bad]
    deaths = sum(done.deaths for done in found.values())
    print(f"{sum(counts.values())} points, {len(bad)} bad, {deaths} deaths also real")
    if args.out:
        each = {n: {"calls": d.calls, "points": sum(d.counts.values()), "states": d.states} for n, d in found.items()}
        record = {"points": sum(counts.values()), "bad": bad, "modes": counts, "real_deaths": deaths, "scenes": each}
        seconds = round(time.process_time() - began, 1)
        args.out.write_text(json.dumps({**record, "processor_seconds": seconds}, indent=1) + "\n")
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
