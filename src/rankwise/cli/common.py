"""What several commands share: their options, what is checked before anything heavy loads, how a stop is told."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter as Option

from rankwise.errors import UsageError, nearest

Json = Annotated[bool, Option(negative=(), show_default=False, help="Print JSON on stdout, for programs.")]


def print_json(value: Mapping[str, Any] | Sequence[Any]) -> None:
    """Print `value` as JSON on stdout."""
    print(json.dumps(value, indent=1, allow_nan=False))


def check_config(path: Path, overrides: Sequence[str]) -> None:
    """Refuse a config that the schema refuses, or that names no method: all that can be known without torch."""
    from rankwise.config import load_config

    check_method(load_config(path, overrides).method, f"{path}: method = ")


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


def check_saved(folder: Path) -> None:
    """Raise UsageError with the nearest folder if `folder` holds neither a run nor an adapter."""
    if not any((folder / name).is_file() for name in ("adapter.json", "adapter_config.json", "base.safetensors")):
        check_run(folder)


def check_out(folder: Path | None) -> None:
    """Raise UsageError if results cannot be written to `folder` because a file is in its place."""
    taken = next((path for path in (folder, *folder.parents) if path.is_file()), None) if folder else None
    if taken:
        raise UsageError(f"--out {str(folder)!r}: {taken} is a file; name a folder")


@contextmanager
def stoppable(folder: Path) -> Iterator[None]:
    """On Ctrl-C, say how to continue the run in `folder`."""
    try:
        yield
    except KeyboardInterrupt:
        begun = (folder / "config.toml").is_file()
        remedy = f"continue with `rankwise resume {shlex.quote(str(folder))}`" if begun else "nothing was started"
        raise KeyboardInterrupt(f"stopped; {remedy}") from None
