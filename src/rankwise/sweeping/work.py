"""The work of a sweep: its cells learnt one by one or side by side, from where a killed sweep left them."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from rankwise import api, papers
from rankwise.errors import NonFiniteError, RankwiseError
from rankwise.files import load_json, remove
from rankwise.learning.ledger import Ledger
from rankwise.learning.run import Watch
from rankwise.reporting import page
from rankwise.storage import sweep as clean
from rankwise.sweeping.plan import TUNING, Cell, Plan
from rankwise.sweeping.record import LARGEST, SCORE, Record


@dataclass(frozen=True)
class Job:
    """A run, as a process of its own needs it."""

    config: Path
    overrides: tuple[str, ...]
    folder: Path
    modules: tuple[str, ...] = ()
    """The user's own modules that hold methods."""


def sweep(plan: Plan, folder: Path, *, jobs: int = 1, watch: Watch | None = None) -> dict[str, Any]:
    """Do what is left of a sweep in `folder`; return its record (plan, chosen, cells), which sweep.json holds.

    For each method: the runs that pick its settings, on the first tasks and read on validation data; then the whole
    stream at the picked settings, once for each seed. A sweep that was killed goes on where it was, to the bit:
    finished cells are read, and a run under way is resumed from its newest snapshot. Tuning runs are removed once
    their validation average is recorded, so their test scores are seen by nobody.

    Args:
        plan: what to do.
        folder: where; final runs lie below it, one folder a method and seed.
        jobs: runs at a time, each in a process of its own with one thread; 1: in this process, one after another.
        watch: is told of each cell that is done.

    Raises:
        StorageError: another sweep lies there, or another process writes it.
        RankwiseError: a cell failed for another reason than a loss that is not finite, which is recorded instead.

    """
    watch = watch or Watch()
    for method in plan.methods:  # refuse what only the methods themselves know, before the first cell
        for cell in plan.tuning(method) or plan.final(method, {k: v[0] for k, v in plan.grid.items()})[:1]:
            api.resolve(plan.config, plan.overrides_of(cell))
    with Ledger(folder).locked():
        clean(folder)
        record = Record(folder, plan)
        record.write()
        _learn_all([cell for method in plan.methods for cell in plan.tuning(method)], record, folder, jobs, watch)
        remove(folder / TUNING)
        chosen = {method: (record.choice(method) or {})["values"] for method in plan.methods}
        finals = [cell for m, values in chosen.items() if values is not None for cell in plan.final(m, values)]
        _learn_all(finals, record, folder, jobs, watch)
        for run in (folder / cell.folder for cell in finals):
            if (run / "results.json").is_file() and not (run / page.NAME).is_file():  # killed, or no room, just before
                page.left_behind(run, watch)
        return load_json(record.path, LARGEST)


def _learn_all(cells: Sequence[Cell], record: Record, folder: Path, jobs: int, watch: Watch) -> None:
    """Learn the cells that are not recorded yet, recording each as it is done."""
    left = {folder / cell.folder: cell for cell in cells if record.find(cell) is None}
    waiting = [
        Job(record.plan.config, tuple(record.plan.overrides_of(cell)), path, tuple(papers.added()))
        for path, cell in left.items()
    ]
    done = len(cells) - len(left)
    with contextlib.closing(_spread(waiting, jobs)) as finished:
        for job, results in finished:
            cell, done = left[job.folder], done + 1
            entry = record.add(cell, results)
            watch.note(f"{done}/{len(cells)}  {cell.name()}: {_told(entry)}")


def _told(entry: dict[str, Any]) -> str:
    if "error" in entry:
        return f"failed: {entry['error']}"
    key = SCORE if entry["stage"] == "tune" else "final_average"
    score = "unknown" if entry[key] is None else f"{entry[key]:.3f}"
    return f"{'validation' if entry['stage'] == 'tune' else 'final average'} {score} ({entry['wall_seconds']:.1f} s)"


def learn(job: Job) -> dict[str, Any]:
    """Learn a run, or what is left of it, and return its results; {"error": ...} for a loss that is not finite."""
    for module in job.modules:
        papers.add(module)
    if (job.folder / "results.json").is_file():
        return load_json(job.folder / "results.json", LARGEST)
    try:
        if (job.folder / "config.toml").is_file():
            return api.resume(job.folder).results
        return api.run(job.config, out=job.folder, overrides=job.overrides).results
    except NonFiniteError as error:
        return {"error": str(error)}


def _spread(jobs: Sequence[Job], at_once: int) -> Generator[tuple[Job, dict[str, Any]]]:
    """Yield each job with its results, as they are done."""
    if at_once == 1:
        yield from ((job, learn(job)) for job in jobs)
        return
    waiting, running = list(jobs), dict[Connection, tuple[Job, BaseProcess]]()
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                connection, process = _started(waiting[0])
                running[connection] = waiting.pop(0), process
            for connection in wait(list(running)):
                job, process = running.pop(connection)  # pyright: ignore[reportArgumentType]
                yield job, _answer(job, connection, process)  # pyright: ignore[reportArgumentType]
    finally:
        for _, process in running.values():
            process.terminate()
            process.join()


def _started(job: Job) -> tuple[Connection, BaseProcess]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(job, theirs), daemon=True)
    with _deaf():
        process.start()
    theirs.close()  # so that its end is noticed here, however it comes
    return ours, process


@contextlib.contextmanager
def _deaf() -> Iterator[None]:
    """Let Ctrl-C wait. A process started meanwhile never hears it: this one does, and ends that one."""
    resource_tracker.ensure_running()  # which hears it again, were it to start here
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _answer(job: Job, connection: Connection, process: BaseProcess) -> dict[str, Any]:
    try:
        answer = connection.recv()
    except EOFError:
        process.join()
        raise RankwiseError(
            f"{job.folder}: its process ended without an answer (exit code {process.exitcode}); if memory ran out, "
            "give a smaller --jobs; the same command goes on from here"
        ) from None
    process.join()
    if isinstance(answer, RankwiseError):
        raise answer
    return answer


def _work(job: Job, connection: Connection) -> None:
    """Learn one job in a process of its own, which ends when its parent does, however that ends."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        connection.send(learn(job))
    except RankwiseError as error:
        connection.send(error)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
