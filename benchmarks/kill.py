"""Kill a run at random instants, resume it, and compare what it leaves with the run that nobody killed.

    python benchmarks/kill.py [--kills 20] [--jobs 2] [--out kill.json]

Half of the kills (SIGKILL) come uniformly over the time from the run's first file to its end, half at the moment a
snapshot is being written; every fourth run is killed a second time while it resumes. A run passes if adapter folder,
matrix, results and events (times aside) are those of the undisturbed run, byte for byte.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

CONFIG = """
seed = 1
method = "mora"
[stream]
name = "digits"
[train]
steps = 40
device = "cpu"
threads = 1
snapshot_seconds = 0.5
"""
START = "import sys, rankwise; rankwise.run(sys.argv[1], out=sys.argv[2])"
RESUME = "import sys, rankwise; rankwise.resume(sys.argv[1])"
CLOCKED = ("wall_seconds", "peak_memory_bytes")
PAUSE = 0.0005  # seconds between two looks at the folder of snapshots


@dataclass(frozen=True)
class Outcome:
    """One run that was killed."""

    number: int
    aim: str
    kills: int
    killed_at: float
    """Seconds into the run of the first kill."""
    resumed_from: str
    """Newest snapshot after the first kill."""
    differs: tuple[str, ...]
    """What is not as in the undisturbed run; empty: passed."""


def main() -> int:
    """Run the benchmark; return 1 if a killed run ended differently."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="runs to kill (default 20)")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time (default 2)")
    parser.add_argument("--seed", type=int, default=0, help="of the instants")
    parser.add_argument("--out", type=Path, help="write the outcomes as JSON")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        outcomes, seconds = trial(Path(folder), CONFIG, args.kills, args.jobs, args.seed)
    failed = sum(bool(outcome.differs) for outcome in outcomes)
    print(f"undisturbed: {seconds:.1f} s")
    print(f"{len(outcomes) - failed} passed, {failed} failed")
    if args.out:
        record = {"wall_seconds": seconds, "failed": failed, "runs": [asdict(outcome) for outcome in outcomes]}
        args.out.write_text(json.dumps(record, indent=1) + "\n")
    return int(failed > 0)


def trial(folder: Path, config: str, kills: int, jobs: int, seed: int) -> tuple[list[Outcome], float]:
    """Run `config` undisturbed, then `kills` times with a kill; return outcomes and the undisturbed run's seconds."""
    source = folder / "config.toml"
    source.write_text(config)
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", START, source, folder / "whole"], check=True)
    seconds = time.monotonic() - began
    working = (folder / "whole" / "results.json").stat().st_mtime - (folder / "whole" / "config.toml").stat().st_mtime
    whole = left(folder / "whole")

    def one(number: int) -> Outcome:
        outcome = killed(number, source, folder / f"run-{number}", working, whole, random.Random(f"{seed}/{number}"))
        shutil.rmtree(folder / f"run-{number}")
        word = "ok" if not outcome.differs else "DIFFERS: " + ", ".join(outcome.differs)
        print(f"{number:3} {outcome.aim:9} {outcome.killed_at:6.1f} s {outcome.resumed_from:14} {word}", flush=True)
        return outcome

    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(one, range(kills))), seconds


def killed(
    number: int, source: Path, out: Path, seconds: float, whole: dict[str, Any], chance: random.Random
) -> Outcome:
    """Start a run, kill it, resume it (killing every fourth once more) and say what differs."""
    aim = "snapshot" if number % 2 else "any time"
    began = time.monotonic()
    strike([START, str(source), str(out)], instant(aim, out, seconds, chance))
    at = time.monotonic() - began
    snapshots = sorted(path.name for path in (out / "checkpoints").glob("step-*"))
    if number % 4 == 3:
        strike(again(source, out), instant("any time", out, seconds, chance))
    subprocess.run([sys.executable, "-c", *again(source, out)], check=True)
    found = left(out)
    differs = tuple(key for key in whole if found[key] != whole[key])
    return Outcome(number, aim, 1 + (number % 4 == 3), at, snapshots[-1] if snapshots else "none", differs)


def again(source: Path, out: Path) -> list[str]:
    """Return what continues the run; one killed before it wrote its config is started again, as `resume` would say."""
    return [RESUME, str(out)] if (out / "config.toml").is_file() else [START, str(source), str(out)]


def instant(aim: str, out: Path, seconds: float, chance: random.Random) -> Callable[[], bool]:
    """Return a function that says whether the instant has come, asked every half millisecond."""
    share, waited = chance.random(), chance.uniform(0, 0.03)  # a snapshot takes about that long
    marks: dict[str, float] = {}

    def come() -> bool:
        now = time.monotonic()
        if "begun" not in marks and (out / "config.toml").is_file():
            marks["begun"] = now  # what happens before is importing, where there is nothing to lose
        if now < marks.get("begun", now) + share * seconds * (0.75 if aim == "snapshot" else 1):
            return False
        if aim == "snapshot" and any((out / "checkpoints").glob(".*-tmp-*")):
            marks.setdefault("writing", now)
        return "begun" in marks and (aim != "snapshot" or now >= marks.get("writing", now + 1) + waited)

    return come


def strike(arguments: list[str], come: Callable[[], bool]) -> None:
    """Run a Python program until `come` says so or it ends; then kill it."""
    process = subprocess.Popen([sys.executable, "-c", *arguments])
    while process.poll() is None and not come():
        time.sleep(PAUSE)
    process.kill()
    process.wait()


def left(out: Path) -> dict[str, Any]:
    """Return what a run leaves, without what clocks and machines decide."""
    results = json.loads((out / "results.json").read_text())
    events = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
    return {
        "adapter": {file.name: file.read_bytes() for file in (out / "adapter").iterdir()},
        "matrix": (out / "matrix.csv").read_bytes(),
        "results": {key: value for key, value in results.items() if key not in CLOCKED},
        "events": [{key: value for key, value in event.items() if key != "time"} for event in events],
    }


if __name__ == "__main__":
    sys.exit(main())
