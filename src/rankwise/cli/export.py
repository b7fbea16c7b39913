"""`rankwise export`: an adapter for another program."""

from __future__ import annotations

from pathlib import Path

from rankwise.cli.common import Json, check_base, check_new, check_saved, loading, print_json
from rankwise.errors import UsageError, nearest

FORMATS = ("peft",)


def export(folder: Path, /, *, out: Path, to: str = "peft", base: str | None = None, json: Json = False) -> None:
    """Write what was learnt as an adapter that another program loads: a LoRA checkpoint of PEFT, which vLLM takes too.

    Example: rankwise export runs/digits-lora-seed0 --to peft --out adapters/digits

    Args:
        folder: The folder of a run, or of a saved adapter.
        out: New folder to write the checkpoint to.
        to: The format: peft.
        base: The base of a saved adapter, as model.name of a config. Default: the one it names.

    """
    if to not in FORMATS:
        raise UsageError(f"--to {to!r}: no such format; {nearest(to, FORMATS)}")
    with loading():
        check_saved(folder)
        check_new(out)
        check_base(base, folder)
        from rankwise import saved

    written = saved.export_saved(folder, out, to=to, base=base)
    if json:
        print_json(written)
    else:
        print(f"{written['method']} of {folder} as a {to} checkpoint: {out}")
