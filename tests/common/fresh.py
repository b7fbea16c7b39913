"""Python in a process of its own, with the package of this clone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[2] / "src"


def python(
    *words: str, folder: Path | None = None, text: str = "", seconds: float = 240, **variables: str | None
) -> subprocess.CompletedProcess[str]:
    """Run `python <words>` in `folder` with `text` to read; a variable of the environment that is None is unset."""
    wanted = {**os.environ, "PYTHONPATH": str(SOURCE), **variables}
    return subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env={key: value for key, value in wanted.items() if value is not None},
        input=text,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
