"""A disk that fails on command: every call by which a process changes files below a folder, counted and made to fail.

`Disk` takes the place of the calls of `os` (and of `open` for writing, which then goes through them). It can do one of
MODES at the n-th call. A death is played, not real, unless asked: `Died` goes up through the program, and no later call
reaches the disk, so what is left is what a kill leaves, which `crash.py` proves again with real deaths at some calls.
That nothing gets past the calls is checked while they are counted: the folder is looked at before and after each.
"""

from __future__ import annotations

import _pyio
import builtins
import contextlib
import errno
import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ON_PATHS = ("open", "rename", "replace", "link", "symlink", "mkdir", "unlink", "remove", "rmdir", "truncate")
ON_FILES = ("write", "pwrite", "ftruncate", "fsync", "close")
WRITES = ("write", "pwrite", "save_file")
GROWS = (*WRITES, "mkdir", "create")
"""Calls that a full disk refuses; it still renames and removes."""
MODES = ("kill", "tear", "full", "stays full", "broken", "stop")
"""kill: dies before the call. tear: dies when half of a write is done. full: the call, half done, finds no space; those
after it do. stays full: so does every later call that needs space. broken: that call and all later ones fail (EIO).
stop: the user presses Ctrl-C before the call."""
KILLED = 77
NOBODY = 1 << 22
"""A process number that no process has: what a dead one left is to be seen as that."""


class Died(BaseException):
    """The process is dead; nothing may catch this, and whatever does, does nothing to the disk any more."""


def possible(mode: str, call: str) -> bool:
    """Say whether `mode` at this call is a case of its own.

    A death before a call that changes nothing (`close`, opening to read or to sync) is one before the call after it.
    """
    changes = call not in ("open", "close")
    own = {
        "kill": changes,
        "tear": call in WRITES,
        "full": call != "open",
        "stays full": call in GROWS,
        "stop": changes,
    }
    return own.get(mode, True)


class Disk:
    """The calls that change files below `root`; see the module."""

    def __init__(self, root: Path, mode: str = "", at: int = 0, *, really: bool = False) -> None:
        """Do `mode` at call number `at` (from 1; 0: never); `really`: a death ends this process."""
        self.root, self.mode, self.at, self.really = str(root), mode, at, really
        self.calls: list[str] = []
        """Names of the calls so far."""
        self.escaped: list[str] = []
        """What changed below `root` otherwise."""
        self.struck = self.dead = self.looking = False
        self.files: set[int] = set()
        self.after: Callable[[str], None] | None = None
        """Called after each call, to see what it left; the disk is then watched for changes past the calls."""
        self.seen: dict[str, Any] = {}

    @contextlib.contextmanager
    def ruling(self, *writers: tuple[Any, str]) -> Iterator[Disk]:
        """Take the place of the calls, and of `writers`: functions (of a module, by name) that write without them.

        A writer is called as f(anything, path, ...), like safetensors' save_file, and counts as one call.
        """
        with contextlib.ExitStack() as stack:
            for name in (*ON_PATHS, *ON_FILES):
                stack.enter_context(_replaced(os, name, self._wrapped(name, getattr(os, name))))
            for module, name in writers:
                stack.enter_context(_replaced(module, name, self._writer(getattr(module, name))))
            for module in (io, builtins):
                stack.enter_context(_replaced(module, "open", self._opener(open)))
            stack.enter_context(_replaced(os, "getpid", lambda: NOBODY))
            self.seen = self._look()
            yield self
            self._watch()

    def _wrapped(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if not self._is_below(name, args, kwargs):
                return real(*args, **kwargs)
            made = "create" if name == "open" and args[1] & os.O_CREAT else name
            return self._made(made, lambda: real(*args, **kwargs), lambda: _half(name, real, args, kwargs), args)

        return call

    def _writer(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(what: Any, path: Any, *args: Any, **kwargs: Any) -> Any:
            def half() -> None:
                real(what, path, *args, **kwargs)
                with open(path, "rb") as file:
                    whole = file.read()
                Path(path).write_bytes(whole[: len(whole) // 2])

            return self._made("save_file", lambda: real(what, path, *args, **kwargs), half, ())

        return call

    def _opener(self, real: Callable[..., Any]) -> Callable[..., Any]:
        """Return `open`, but in Python where the file is written, so that it makes the calls that are replaced."""

        def call(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            ours = isinstance(file, str | os.PathLike) and self._holds(file) and set(mode) & set("wax+")
            return _pyio.open(file, mode, *args, **kwargs) if ours else real(file, mode, *args, **kwargs)

        return call

    def _made(self, name: str, whole: Callable[[], Any], half: Callable[[], Any], args: tuple[Any, ...]) -> Any:
        if self.looking:
            return whole()
        if self.dead:
            if name == "close":
                return whole()  # the system closes what a dead process had open
            raise Died
        self._watch()
        self.calls.append(name)
        if self.mode and self._strikes(name):
            self._strike(name, half)
        done = whole()
        if name in ("open", "create"):
            self.files.add(done)
        elif name == "close":
            self.files.discard(args[0])
        if self.after is not None:
            self.seen, self.looking = self._look(), True
            self.after(name)
            self.looking = False
        return done

    def _strikes(self, name: str) -> bool:
        now = len(self.calls)
        if self.mode == "stays full":
            return now >= self.at and name in GROWS
        return now >= self.at if self.mode == "broken" else now == self.at

    def _strike(self, name: str, half: Callable[[], Any]) -> None:
        first, self.struck = not self.struck, True
        if self.mode in ("tear", "full", "stays full") and first and name in WRITES:
            half()
        if name == "close":
            half()
        if self.mode in ("kill", "tear"):
            if self.really:
                os._exit(KILLED)
            self.dead = True
            raise Died
        if self.mode == "stop":
            raise KeyboardInterrupt
        code = errno.EIO if self.mode == "broken" else errno.ENOSPC
        raise OSError(code, os.strerror(code))

    def _is_below(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        if name in ON_FILES:
            return args[0] in self.files
        folder = kwargs.get("dir_fd")
        return folder in self.files if folder is not None else self._holds(args[0])

    def _holds(self, path: Any) -> bool:
        return os.path.abspath(os.fspath(path)).startswith(self.root)

    def _watch(self) -> None:
        """Note what changed since the last call: something wrote without a call."""
        if self.after is not None and (now := self._look()) != self.seen:
            self.escaped += sorted(str(change) for change in now.items() ^ self.seen.items())

    def _look(self) -> dict[str, Any]:
        if self.after is None:
            return {}
        found = {}
        for folder, _, names in os.walk(self.root):
            for path in (folder, *(os.path.join(folder, name) for name in names)):
                status = os.lstat(path)
                found[path] = (status.st_ino, status.st_size, status.st_mtime_ns)
        return found


def _half(name: str, real: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Do half of a write; close a file."""
    if name in WRITES:
        real(args[0], bytes(args[1])[: len(args[1]) // 2], *args[2:])
    elif name == "close":
        real(*args, **kwargs)


@contextlib.contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    former = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, former)
