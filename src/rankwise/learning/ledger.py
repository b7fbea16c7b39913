"""A run's directory: what was asked, what happened, what came out. Only the first process writes."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import os
import platform
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from rankwise.config import Config, to_toml
from rankwise.errors import StorageError
from rankwise.files import (
    LARGEST_RECORD,
    append_line,
    check_plain,
    discard,
    explained,
    load_object,
    make_folder,
    parse_json,
    remove,
    truncate,
    write_file,
)
from rankwise.storage import CARD, newest_valid, read_folder, sweep, write_folder
from rankwise.tensors import load_tensors, tensor_writer
from rankwise.version import __version__

PACKAGES = ("torch", "transformers", "accelerate", "safetensors", "datasets", "numpy", "scikit-learn")
UNDO = "undo.json"
"""Stands in a run's directory while its last task is being taken back."""
KEEP = 2
"""Snapshots kept within a task; those at task ends all stay."""
CAUSES = ("seed", "settings", "sources")
"""Keys of a stream's record that the others follow from."""
FREE = "device|threads|workers|snapshot_seconds"
"""Keys of [train] that a run may go on with other values of."""
PLACE = re.compile(
    rf"sources\.\d+\.name|test_cuts\.\d+\.source|(settings|stream)\.(tasks\.\d+\.)?(train|test)|train\.({FREE})"
)
"""What may differ in the records of a stream or a config: where files lie, and what the machine needs."""

State = tuple[dict[str, torch.Tensor], dict[str, Any]]


class Ledger:
    """The directory `path`: config.toml, environment.json, events.jsonl, checkpoints/, adapter/, results, matrix."""

    def __init__(self, path: Path) -> None:
        """Point at a directory; nothing is read or written yet."""
        self.path = path
        self.events = path / "events.jsonl"
        self.checkpoints = path / "checkpoints"

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from writing here; the lock goes with the process that holds it."""
        import fcntl

        with explained(self.path, "cannot be written"):
            make_folder(self.path)
            lock = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            with explained(self.path, "cannot be locked"):
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise StorageError(
                        f"{self.path}: another process is writing this run; wait for it or stop it"
                    ) from None
            yield
        finally:
            with contextlib.suppress(OSError):  # an empty file: nothing of it can be lost
                os.close(lock)

    def open(self, config: Config, stream: Mapping[str, Any], base: Mapping[str, Any]) -> None:
        """Write what the run is made of, and start its events."""
        if self.events.exists():
            raise StorageError(
                f"{self.path} holds a run already; `rankwise resume {self.path}` or choose another --out"
            )
        with explained(self.checkpoints, "cannot be made"):
            make_folder(self.checkpoints)
        text = to_toml(config)
        record = {**environment(), "base": dict(base), "stream": dict(stream), "config": tomllib.loads(text)}
        self.write_json("environment.json", {"run": _identity(text, record), **record})
        write_file(self.path / "config.toml", text.encode())  # last: where it stands, `resume` works

    @cached_property
    def run(self) -> str | None:
        """What tells this run from others: snapshots bear it. None: it was started before there was such a mark."""
        record = self.path / "environment.json"
        return load_object(record, LARGEST_RECORD).get("run") if record.exists() else None

    def refuse_changed(self, stream: Mapping[str, Any], base: Mapping[str, Any]) -> None:
        """Raise StorageError if the data, the base or config.toml are not those the run was started with.

        Of data, what they hold counts, not where they lie: a run goes on with the same files in another folder. Of the
        config, what the machine needs may change (`FREE`).
        """
        saved = load_object(self.path / "environment.json", LARGEST_RECORD)
        config = tomllib.loads((self.path / "config.toml").read_text(encoding="utf-8"))
        base = {key: value for key, value in base.items() if key in saved["base"]}  # others were not recorded yet
        for what, now in (("stream", stream), ("base", base), ("config", config)):
            was = saved.get(what, config if what == "config" else None)
            if how := next(_changes(was, json.loads(json.dumps(now))), None):
                raise StorageError(
                    f"{self.path}: the {what} has changed since this run was started: {how}; "
                    "start a new run, or restore it"
                )

    def record(self, event: str, **values: Any) -> None:
        """Append one line to the events; all but its `time` is the same however often the run was interrupted."""
        line = {"event": event, **values, "time": datetime.now(UTC).isoformat(timespec="milliseconds")}
        append_line(self.events, json.dumps(line))

    def snapshot(self, state: State, number: int, *, kept: bool) -> None:
        """Write a snapshot of everything that changes; `number` grows; `kept` ones are never removed."""
        tensors, values = state
        offset = self.events.stat().st_size if self.events.exists() else 0
        files = {
            "state.safetensors": tensor_writer(tensors),
            "state.json": json.dumps({**values, "events": offset, "kept": kept, "run": self.run}).encode(),
        }
        write_folder(self.checkpoints / _name(number), files, kind="snapshot")
        self._forget_old()

    def clean(self) -> None:
        """Remove what a killed writer left half written, end a killed `undo`; only where nobody else writes."""
        self.tidy()
        if self.undoing() is not None:
            self.cut()
            self.end_undo()

    def tidy(self) -> None:
        """Remove what a killed writer left half written; only where nobody else writes."""
        sweep(self.path)
        sweep(self.checkpoints)

    def newest(self) -> str:
        """Say which snapshot a resumed run starts from, and how to start without one."""
        folder, _ = self._newest()
        found = "there is no snapshot yet" if folder is None else f"the last good snapshot is {folder}"
        return f"{found}; delete {self.path} or choose another --out to start anew"

    def last(self) -> tuple[State | None, list[str]]:
        """Return the newest snapshot that is whole, and one line about each newer one that is not."""
        folder, refused = self._newest()
        return None if folder is None else self.read(folder), refused

    def read(self, folder: Path) -> State:
        """Return what the snapshot `folder` holds; StorageError if it is not whole, or another run's."""
        files = read_folder(folder, kind="snapshot")
        self._refuse_foreign(folder, files)
        values = _values(folder)
        if not _is_state(values):
            raise StorageError(f"{folder / 'state.json'}: is no state of a run; it was altered")
        return load_tensors(files["state.safetensors"], finite=False), values

    def task_ends(self) -> dict[int, Path]:
        """Return the snapshot written at the end of each task, by the number of tasks learnt; none is verified."""
        found = {folder: _values(folder) for folder in sorted(self.checkpoints.glob("step-*"))}
        kept = {folder: values for folder, values in found.items() if values.get("kept") and _is_state(values)}
        return {values["progress"]["task"]: folder for folder, values in kept.items()}

    def progress(self, folder: Path) -> dict[str, Any]:
        """Return where the run stood at a snapshot that `task_ends` lists."""
        return _values(folder)["progress"]

    def read_events(self) -> list[dict[str, Any]]:
        """Return the events, each with `end`, the offset in bytes after it; a line torn by a kill is left out."""
        if self.events.exists():
            check_plain(self.events)
        data = self.events.read_bytes() if self.events.exists() else b""
        ends = [match.end() for match in re.finditer(b"\n", data)]
        events = [parse_json(line, str(self.events)) for line in data.split(b"\n")[: len(ends)]]
        for number, event in enumerate(events, 1):
            if not isinstance(event, dict) or "event" not in event:
                raise StorageError(f"{self.events}: line {number} is no event; it was altered: restore it from a copy")
        return [{**event, "end": end} for event, end in zip(events, ends, strict=True)]

    def begin_undo(self, task: str, folder: Path | None, offset: int) -> None:
        """Note that all after snapshot `folder` (None: after the start) and event offset `offset` is to go.

        From here on the undo is done, if not by this process then by the next that writes here (`clean`).
        """
        number = -1 if folder is None else int(folder.name.removeprefix("step-"))
        self.write_json(UNDO, {"task": task, "number": number, "events": offset})

    def undoing(self) -> dict[str, Any] | None:
        """Return what `begin_undo` noted, if `end_undo` has not come since."""
        if not (self.path / UNDO).exists():
            return None
        found = load_object(self.path / UNDO, keys=("task", "number", "events"))
        if type(found["number"]) is not int or type(found["events"]) is not int:
            raise StorageError(f"{self.path / UNDO}: 'number' and 'events' must be whole numbers; it was altered")
        return found

    def cut(self) -> None:
        """Remove the snapshots and events that are to go, the newest first."""
        asked = self.undoing() or {}
        for folder in sorted(self.checkpoints.glob("step-*"), reverse=True):
            if folder.name > _name(asked["number"]):
                discard(folder)
        if self.events.exists() and self.events.stat().st_size > asked["events"]:
            truncate(self.events, asked["events"])

    def end_undo(self) -> None:
        """Note that the undo is complete."""
        discard(self.path / UNDO)  # left there, it would take the task back again after it was relearnt

    def rewind(self, offset: int, number: int) -> None:
        """Go back to snapshot `number`: cut the events written after it, and put later, refused snapshots aside."""
        for folder in self.checkpoints.glob("step-*"):
            if folder.name > _name(number):
                aside = folder.with_name(folder.name.replace("step", "refused"))
                remove(aside)
                with explained(folder, "cannot be put aside"):
                    folder.rename(aside)
        if self.events.exists():
            truncate(self.events, offset)

    def write_json(self, name: str, values: Mapping[str, Any]) -> None:
        """Write one JSON file, whole or not at all."""
        write_file(self.path / name, (json.dumps(values, indent=1, allow_nan=False) + "\n").encode())

    def write_matrix(
        self, tasks: Sequence[str], zero_shot: Sequence[float | None], matrix: Sequence[Sequence[Any]]
    ) -> None:
        """Write R as CSV: a column a task, a row before learning and one after each task learnt."""
        text = io.StringIO()
        writer = csv.writer(text)
        writer.writerow(["after", *tasks])
        for name, row in zip(["nothing", *tasks[: len(matrix)]], [zero_shot, *matrix], strict=True):
            writer.writerow([name, *("" if cell is None else repr(cell) for cell in row)])
        write_file(self.path / "matrix.csv", text.getvalue().encode())

    def stored_bytes(self) -> int:
        """Size of what the run leaves to be used: the files under adapter/, without the words about them."""
        files = (self.path / "adapter").glob("*")
        return sum(file.stat().st_size for file in files if file.is_file() and file.name != CARD)

    def _newest(self) -> tuple[Path | None, list[str]]:
        return newest_valid(self.checkpoints, kind="snapshot", pattern="step-*", check=self._refuse_foreign)

    def _refuse_foreign(self, folder: Path, files: Mapping[str, Path]) -> None:
        if _values(files["state.json"].parent).get("run") != self.run:
            raise StorageError(f"{folder}: is a snapshot of another run; remove it")

    def _forget_old(self) -> None:
        """Remove snapshots within tasks but the newest few; one that is being read elsewhere is left."""
        found = sorted(self.checkpoints.glob("step-*"))
        passing = [folder for folder in found if _values(folder).get("kept") is False]  # not what cannot be read
        for folder in passing[:-KEEP]:
            remove(folder)


def _name(number: int) -> str:
    return f"step-{number:08d}"


def _identity(config: str, record: Mapping[str, Any]) -> str:
    """Tell a run from others: two that agree in all of this leave the same bits, so their snapshots may stand in."""
    return hashlib.sha256(json.dumps([config, record], sort_keys=True).encode()).hexdigest()


def _changes(was: Any, now: Any, place: str = "") -> Iterator[str]:
    """Yield what differs between two records, causes first; where the files of a stream lie is no difference."""
    if was == now or PLACE.fullmatch(place):
        return
    if isinstance(was, dict) and isinstance(now, dict):
        if place.startswith("sources.") and any(was.get(key) != now.get(key) for key in ("sha256", "rows")):
            yield f"{now.get('name')!r} had {_content(was)}, has {_content(now)}"
        for key in dict.fromkeys([*CAUSES, *now, *was]):
            yield from _changes(was.get(key), now.get(key), f"{place}.{key}" if place else key)
    elif isinstance(was, list) and isinstance(now, list) and len(was) == len(now):
        for number, (one, other) in enumerate(zip(was, now, strict=True)):
            yield from _changes(one, other, f"{place}.{number}")
    else:
        yield f"{place.removeprefix('settings.')} was {_shown(was)}, is {_shown(now)}"


def _content(source: Mapping[str, Any]) -> str:
    return f"{source.get('rows')} rows (SHA-256 {str(source.get('sha256'))[:8]})"


def _shown(value: object) -> str:
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _values(folder: Path) -> dict[str, Any]:
    """Return the JSON values of a snapshot, none where they are gone or altered, or lie elsewhere."""
    if folder.is_symlink():
        return {}
    with explained(folder, "cannot be read"):
        try:
            found = json.loads((folder / "state.json").read_text())
        except (FileNotFoundError, NotADirectoryError, ValueError, RecursionError):
            return {}
    return found if isinstance(found, dict) else {}


def _is_state(found: object) -> bool:
    """Say whether the values of a snapshot have the form that a run writes."""
    match found:
        case {"progress": {"task": int()}, "learner": {"blocks": _, "begun": int(), "phase": _}, "events": int()}:
            return True
    return False


def environment() -> dict[str, Any]:
    """Return versions and machine, from an allow-list: nothing of the process environment is recorded."""
    versions = {"rankwise": __version__}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor_threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "packages": versions,
    }
