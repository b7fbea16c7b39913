"""What several commands share: their options, what is checked before anything heavy loads, how a stop is told."""

from __future__ import annotations

import json
import os
import shlex
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter as Option

from rankwise.errors import UsageError, nearest

STOPPED = 130
"""The exit code of a command that was stopped by the user."""
UNWRITTEN = "stopped; nothing was written yet"

Json = Annotated[bool, Option(negative=(), show_default=False, help="Print JSON on stdout, for programs.")]


def print_json(value: Mapping[str, Any] | Sequence[Any]) -> None:
    """Print `value` as JSON on stdout."""
    print(json.dumps(value, indent=1, allow_nan=False))


def check_config(path: Path, overrides: Sequence[str]) -> None:
    """Refuse a config that the schema refuses, or that names what does not exist: all that can be known without torch.

    Methods, parts and their settings, files and bases are looked for.
    """
    from rankwise.cli.parts import check_parts, check_places
    from rankwise.config import load_config

    config = load_config(path, overrides)
    check_method(config.method, f"{path}: method = ")
    check_parts(config, str(path))
    check_places(config, path.parent, str(path))


def check_base(name: str | None, folder: Path) -> None:
    """Refuse a --base that cannot be there, or one beside a run in `folder`, which knows its own."""
    if name is not None and (folder / "config.toml").is_file():
        raise UsageError(f"--base {name!r}: a run knows its base; leave it out")
    if name is not None:
        from rankwise.cli.parts import check_base as check

        check(name, Path(), "--base ")


def check_blocks(folder: Path, blocks: Sequence[str]) -> None:
    """Raise UsageError with the nearest block if the adapter in `folder` (a run's or its own) lacks one of `blocks`."""
    from rankwise.files import load_json

    files = [folder / "adapter.json", folder / "adapter" / "adapter.json"] if blocks else []
    for file in (file for file in files if file.is_file()):
        known = set(_labels(load_json(file)))
        for block in blocks:
            if block not in known:
                raise UsageError(f"--blocks: {folder} has no block {block!r}; {nearest(block, known)}")


def check_tasks(folder: Path, names: Sequence[str], option: str) -> None:
    """Raise UsageError with the nearest task if the run in `folder` has none of one of `names`."""
    from rankwise.files import LARGEST_RECORD, load_json

    known = set(_tasks(load_json(folder / "environment.json", LARGEST_RECORD))) if names else set()
    for name in names:
        if name not in known:
            raise UsageError(f"{option}: task {name!r} is not in this run; {nearest(name, known)}")


def _labels(adapter: object) -> Iterator[str]:
    """Yield the labels of the blocks that an adapter's record lists; a damaged one is refused when it is loaded."""
    for site in _entries(adapter, "sites"):
        yield from (str(block["label"]) for block in _entries(site, "blocks") if "label" in block)


def _tasks(environment: object) -> Iterator[str]:
    """Yield the names of the tasks that a run's record lists."""
    stream = environment.get("stream") if isinstance(environment, dict) else None
    return (str(task["name"]) for task in _entries(stream, "tasks") if "name" in task)


def _entries(record: object, key: str) -> Iterator[dict[str, Any]]:
    listed = record.get(key) if isinstance(record, dict) else None
    return (entry for entry in listed if isinstance(entry, dict)) if isinstance(listed, list) else iter(())


def check_method(slug: str, where: str) -> None:
    """Raise UsageError with the nearest name if there is no method called `slug`."""
    from rankwise.papers import slugs

    if slug not in slugs():
        raise UsageError(f"{where}{slug!r} does not exist; {nearest(slug, slugs())}")


def check_run(folder: Path) -> None:
    """Raise UsageError with the nearest folder if `folder` holds no run."""
    if (folder / "config.toml").is_file():
        return
    what = "holds no run (config.toml is missing)" if folder.is_dir() else "no such folder"
    runs = [path.parent.name for path in folder.parent.glob("*/config.toml")]
    near = nearest(folder.name, runs) if runs else "`rankwise run CONFIG` starts a run"
    raise UsageError(f"{folder}: {what}; {near}")


def check_runs(folders: Sequence[Path]) -> None:
    """Raise UsageError, with the nearest folder, for each of `folders` that neither is a run nor holds one."""
    for folder in folders:
        if not any(folder.glob("*/config.toml")):
            check_run(folder)


def words(text: str | None) -> list[str]:
    """Return the words of a list whose commas separate them.

    >>> words("lora, mora")
    ['lora', 'mora']
    """
    return [word for part in (text or "").split(",") if (word := part.strip())]


def check_new(folder: Path) -> None:
    """Raise UsageError if `folder` is there already and holds anything."""
    check_out(folder)
    if folder.is_dir() and any(folder.iterdir()):
        raise UsageError(f"--out {str(folder)!r}: holds something already; name a new folder")


def check_no_run(folder: Path | None) -> None:
    """Raise UsageError if `folder` holds a run already."""
    if folder is not None and (folder / "config.toml").is_file():
        raise UsageError(f"{folder} holds a run already; `rankwise resume {folder}` or choose another --out")


def check_saved(folder: Path) -> None:
    """Raise UsageError with the nearest folder if `folder` holds neither a run nor an adapter."""
    names = ("adapter.json", "adapter_config.json", "*/adapter_config.json", "base.safetensors")
    if not any(any(folder.glob(name)) for name in names):
        check_run(folder)


def check_out(folder: Path | None, option: str = "--out") -> None:
    """Raise UsageError if results cannot be written to `folder` because a file is in its place."""
    taken = next((path for path in (folder, *folder.parents) if path.is_file()), None) if folder else None
    if taken:
        raise UsageError(f"{option} {str(folder)!r}: {taken} is a file; name a folder")


@contextmanager
def loading() -> Iterator[None]:
    """Until the work begins, Ctrl-C ends the process at once.

    It raises nothing: an exception that meets a finaliser, which run while libraries load, is dropped there.
    """
    heard = threading.current_thread() is threading.main_thread()
    if not heard or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:  # ignored, or another's
        yield
        return
    signal.signal(signal.SIGINT, _leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _leave(*_: object) -> None:
    os.write(2, f"{UNWRITTEN}\n".encode())
    os._exit(STOPPED)


@contextmanager
def stoppable(folder: Path) -> Iterator[None]:
    """On Ctrl-C, say how to continue the run in `folder`."""
    try:
        yield
    except KeyboardInterrupt:
        begun = (folder / "config.toml").is_file()
        again = f"stopped; continue with `rankwise resume {shlex.quote(str(folder))}`"
        raise KeyboardInterrupt(again if begun else UNWRITTEN) from None
