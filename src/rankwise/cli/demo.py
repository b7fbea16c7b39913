"""`rankwise demo`: the main job on the embedded base."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter as Option
from cyclopts import validators

from rankwise.cli.common import Json, check_out, loading, print_json


def demo(
    *,
    out: Path | None = None,
    seed: Annotated[int, Option(validator=validators.Number(gte=0, lt=2**32))] = 0,
    fast: Annotated[bool, Option(negative=(), show_default=False)] = False,
    json: Json = False,
) -> None:
    """Learn a real stream with plain sequential LoRA and with MoRA, beside a frozen base and joint training.

    Example: rankwise demo --seed 1

    Args:
        out: Folder to write the four runs to. Default: runs/demo-seed<seed>.
        seed: Decides the order of the classes and every other draw.
        fast: Fewer steps and rows: shows that everything works, not how well.

    """
    with loading():
        check_out(out)
        from rankwise import demo as demonstration
        from rankwise.reporting.terminal import progress

        folder = out or demonstration.free_folder(seed)
    try:
        with progress() as watch:
            outcome = demonstration.demo(folder, seed, demonstration.FAST if fast else demonstration.FULL, watch)
    except KeyboardInterrupt:
        again = f"the same command with --out {shlex.quote(str(folder))} goes on"
        raise KeyboardInterrupt(f"stopped; {again}") from None
    if json:
        print_json(outcome)
    else:
        demonstration.show_demo(outcome)
