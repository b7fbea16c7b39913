"""A run's directory: what was asked, what happened, what came out. Only the first process writes."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from rankwise.config import Config, to_toml
from rankwise.errors import StorageError
from rankwise.files import append_line, load_json, parse_json, remove, truncate, write_file
from rankwise.storage import newest_valid, read_folder, sweep, write_folder
from rankwise.tensors import load_tensors, tensor_writer

PACKAGES = ("rankwise", "torch", "transformers", "accelerate", "safetensors", "datasets", "numpy", "scikit-learn")
LARGEST_RECORD = 1 << 30
"""Bytes of environment.json: it lists every validation row, and a stream may have millions."""
UNDO = "undo.json"
"""Stands in a run's directory while its last task is being taken back."""
KEEP = 2
"""Snapshots kept within a task; those at task ends all stay."""

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

        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise StorageError(
                    f"{self.path}: another process is writing this run; wait for it or stop it"
                ) from None
            yield

    def open(self, config: Config, stream: Mapping[str, Any], base: Mapping[str, Any]) -> None:
        """Write what the run is made of, and start its events."""
        if self.events.exists():
            raise StorageError(
                f"{self.path} holds a run already; `rankwise resume {self.path}` or choose another --out"
            )
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        self.write_json("environment.json", {**environment(), "base": dict(base), "stream": dict(stream)})
        write_file(self.path / "config.toml", to_toml(config).encode())  # last: where it stands, `resume` works

    def refuse_changed(self, stream: Mapping[str, Any], base: Mapping[str, Any]) -> None:
        """Raise StorageError if the data or the base are not those the run was started with."""
        saved = load_json(self.path / "environment.json", max_bytes=LARGEST_RECORD)
        for what, now in (("stream", stream), ("base", base)):
            if saved.get(what) != json.loads(json.dumps(now)):
                raise StorageError(
                    f"{self.path}: the {what} has changed since this run was started; start a new run, or restore it"
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
            "state.json": json.dumps({**values, "events": offset, "kept": kept}).encode(),
        }
        write_folder(self.checkpoints / _name(number), files, kind="snapshot")
        self._forget_old()

    def clean(self) -> None:
        """Remove what a killed writer left half written, end a killed `undo`; only where nobody else writes."""
        sweep(self.checkpoints)
        if self.undoing() is not None:
            self.cut()
            self.end_undo()

    def newest(self) -> str:
        """Say which snapshot a resumed run starts from."""
        folder, _ = newest_valid(self.checkpoints, kind="snapshot", pattern="step-*")
        return "there is no snapshot yet" if folder is None else f"the last good snapshot is {folder}"

    def last(self) -> tuple[State | None, list[str]]:
        """Return the newest snapshot that is whole, and one line about each newer one that is not."""
        folder, refused = newest_valid(self.checkpoints, kind="snapshot", pattern="step-*")
        return None if folder is None else self.read(folder), refused

    def read(self, folder: Path) -> State:
        """Return what the snapshot `folder` holds; StorageError if it is not whole."""
        files = read_folder(folder, kind="snapshot")
        values = json.loads(files["state.json"].read_text())
        return load_tensors(files["state.safetensors"], finite=False), values

    def task_ends(self) -> dict[int, Path]:
        """Return the snapshot written at the end of each task, by the number of tasks learnt; none is verified."""
        found = {folder: _values(folder) for folder in sorted(self.checkpoints.glob("step-*"))}
        return {values["progress"]["task"]: folder for folder, values in found.items() if values.get("kept")}

    def progress(self, folder: Path) -> dict[str, Any]:
        """Return where the run stood at a snapshot that `task_ends` lists."""
        return _values(folder)["progress"]

    def read_events(self) -> list[dict[str, Any]]:
        """Return the events, each with `end`, the offset in bytes after it; a line torn by a kill is left out."""
        data = self.events.read_bytes() if self.events.exists() else b""
        ends = [match.end() for match in re.finditer(b"\n", data)]
        lines = data.splitlines()[: len(ends)]
        return [{**parse_json(line, str(self.events)), "end": end} for line, end in zip(lines, ends, strict=True)]

    def begin_undo(self, task: str, folder: Path | None, offset: int) -> None:
        """Note that all after snapshot `folder` (None: after the start) and event offset `offset` is to go.

        From here on the undo is done, if not by this process then by the next that writes here (`clean`).
        """
        number = -1 if folder is None else int(folder.name.removeprefix("step-"))
        self.write_json(UNDO, {"task": task, "number": number, "events": offset})

    def undoing(self) -> dict[str, Any] | None:
        """Return what `begin_undo` noted, if `end_undo` has not come since."""
        return load_json(self.path / UNDO) if (self.path / UNDO).exists() else None

    def cut(self) -> None:
        """Remove the snapshots and events that are to go, the newest first."""
        asked = self.undoing() or {}
        for folder in sorted(self.checkpoints.glob("step-*"), reverse=True):
            if folder.name > _name(asked["number"]):
                remove(folder)
                if folder.exists():
                    raise StorageError(f"{folder}: cannot be removed; check the permissions and undo again")
        if self.events.exists() and self.events.stat().st_size > asked["events"]:
            truncate(self.events, asked["events"])

    def end_undo(self) -> None:
        """Note that the undo is complete."""
        remove(self.path / UNDO)

    def rewind(self, offset: int, number: int) -> None:
        """Go back to snapshot `number`: cut the events written after it, and put later, refused snapshots aside."""
        for folder in self.checkpoints.glob("step-*"):
            if folder.name > _name(number):
                aside = folder.with_name(folder.name.replace("step", "refused"))
                remove(aside)
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
        """Size of what the run leaves to be used: the files under adapter/."""
        return sum(file.stat().st_size for file in (self.path / "adapter").glob("*") if file.is_file())

    def _forget_old(self) -> None:
        """Remove snapshots within tasks but the newest few; one that is being read elsewhere is left."""
        passing = [folder for folder in sorted(self.checkpoints.glob("step-*")) if not _is_kept(folder)]
        for folder in passing[:-KEEP]:
            remove(folder)


def _name(number: int) -> str:
    return f"step-{number:08d}"


def _is_kept(folder: Path) -> bool:
    return bool(_values(folder).get("kept"))


def _values(folder: Path) -> dict[str, Any]:
    """Return the JSON values of a snapshot, or none where they cannot be read."""
    try:
        return json.loads((folder / "state.json").read_text())
    except (OSError, ValueError):
        return {}


def environment() -> dict[str, Any]:
    """Return versions and machine, from an allow-list: nothing of the process environment is recorded."""
    versions = {}
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
