"""Measure claims, one seed of one claim at a time, on several processes, so that a killed measurement goes on.

Every finished (claim, seed) is a file of its own. It is taken over by a later call only if the package's source and
torch are what they were; anything else is measured again.
"""

from __future__ import annotations

import hashlib
import json
import math
import multiprocessing
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from rankwise.claims import claims_of
from rankwise.claims.harness.claim import Claim, Values
from rankwise.errors import RankwiseError, StorageError
from rankwise.files import load_json, write_file

FOLDER = Path("runs") / "claims"
"""Where finished measurements lie, below the current folder."""


@dataclass(frozen=True)
class Measured:
    """What one seed of one claim gave."""

    values: Values
    seconds: float
    """Processor seconds it took, on one thread: what else the machine did meanwhile does not count."""
    error: str = ""
    """What went wrong, if it did: the values are then empty and the claim does not hold."""


@dataclass(frozen=True)
class Outcome:
    """All seeds of one claim; none if it cannot be measured here."""

    claim: Claim
    seeds: tuple[Measured, ...]
    missing: str = ""
    """What it needs and this machine does not have."""


def measure_all(claims: Sequence[Claim], seeds: int | None, jobs: int, folder: Path) -> Iterator[Outcome]:
    """Measure `claims` and yield each one's outcome, in their order, as soon as it is known.

    Args:
        claims: what to measure.
        seeds: how many seeds each; None: as many as each claim says.
        jobs: processes that measure at the same time; each has one thread, so values do not depend on their number.
        folder: where finished measurements lie; those of the same source are not measured again.

    """
    wanted = {claim.name: claim.needs() for claim in claims}
    with ExitStack() as stack:
        pool = stack.enter_context(_pool(jobs)) if jobs > 1 else None
        stack.callback(lambda: pool.shutdown(wait=False, cancel_futures=True) if pool else None)
        under_way = {
            claim.name: [_start(pool, claim, seed, folder) for seed in range(seeds or claim.seeds)]
            for claim in claims
            if not wanted[claim.name]
        }
        for claim in claims:
            done = tuple(_wait(start, claim, seed, folder) for seed, start in enumerate(under_way.get(claim.name, ())))
            yield Outcome(claim, done, wanted[claim.name])


def measure(slug: str, number: str, seed: int) -> Measured:
    """Measure one seed of one claim, in this process, on one thread.

    An error of ours (a loss that is no number, two parts that refuse each other) is a finding and is kept as such.
    """
    import torch

    torch.set_num_threads(1)
    claim = next(claim for claim in claims_of(slug) if claim.number == number)
    start = time.process_time()
    try:
        values, error = _finite(claim.measure(seed)), ""
    except RankwiseError as problem:
        values, error = {}, f"seed {seed}: {type(problem).__name__}: {problem}"
    return Measured(values, round(time.process_time() - start, 2), error)


def stored(claim: Claim, seed: int, folder: Path) -> Measured | None:
    """Return what an earlier call measured with the same source, or None."""
    path = _path(claim, seed, folder)
    if not path.is_file():
        return None
    try:
        found = load_json(path)
        if found["source"] != source_digest():
            return None
        return Measured(_finite(dict(found["values"])), float(found["seconds"]), str(found["error"]))
    except (StorageError, KeyError, TypeError, ValueError):
        return None  # altered by hand, or of an older form: measure it again


@cache
def source_digest() -> str:
    """Hash the source of this package and torch's version: what a measurement is a function of, besides its seed."""
    digest = hashlib.sha256(metadata.version("torch").encode())
    package = Path(__file__).parents[2]
    for path in sorted(package.rglob("*.py")):
        digest.update(f"\n{path.relative_to(package).as_posix()}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def _pool(jobs: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn"))


def _start(pool: Executor | None, claim: Claim, seed: int, folder: Path) -> Future[Measured] | None:
    """Begin a measurement in another process; None if it is there already or is to be made in this one."""
    if pool is None or stored(claim, seed, folder) is not None:
        return None
    return pool.submit(_measure_and_keep, claim.slug, claim.number, seed, folder, source_digest())


def _wait(under_way: Future[Measured] | None, claim: Claim, seed: int, folder: Path) -> Measured:
    if under_way is not None:
        try:
            return under_way.result()
        except BrokenProcessPool:
            raise RankwiseError(
                f"{claim.name}: a process that measured was killed; if memory ran out, give a smaller --jobs; what was "
                f"measured is kept in {folder}, the same command goes on"
            ) from None
    found = stored(claim, seed, folder)
    return found or _measure_and_keep(claim.slug, claim.number, seed, folder, source_digest())


def _measure_and_keep(slug: str, number: str, seed: int, folder: Path, source: str) -> Measured:
    measured = measure(slug, number, seed)
    record: Mapping[str, Any] = {
        "source": source,
        "values": dict(measured.values),
        "seconds": measured.seconds,
        "error": measured.error,
    }
    claim = next(claim for claim in claims_of(slug) if claim.number == number)
    write_file(_path(claim, seed, folder), json.dumps(record, indent=1).encode() + b"\n")
    return measured


def _path(claim: Claim, seed: int, folder: Path) -> Path:
    return folder / f"{claim.name}-seed{seed}.json"


def _finite(values: Values) -> dict[str, float | None]:
    return {name: None if value is None or not math.isfinite(value) else float(value) for name, value in values.items()}
