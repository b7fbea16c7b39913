"""`rankwise merge`: an adapter folded into its base."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter as Option

from rankwise.cli.common import Json, check_base, check_blocks, check_new, check_saved, loading, print_json, words


def merge(
    folder: Path,
    /,
    *,
    out: Path,
    base: str | None = None,
    blocks: Annotated[str | None, Option(show_default=False)] = None,
    json: Json = False,
) -> None:
    """Fold what was learnt into the base's weights and write a plain model, in the layout of Hugging Face.

    Example: rankwise merge runs/digits-lora-seed0 --out models/digits

    Args:
        folder: The folder of a run, or of a saved adapter (ours or PEFT's).
        out: New folder to write the model to; its name can stand as model.name in a config.
        base: The base of a saved adapter, as model.name of a config. Default: the one it names.
        blocks: Fold only these blocks, separated by commas, and drop the others. Default: all.

    """
    with loading():
        check_saved(folder)
        check_new(out)
        check_base(base, folder)
        check_blocks(folder, words(blocks))
        from rankwise import saved

    plain = saved.merge_saved(folder, out, base=base, blocks=words(blocks) or None)
    if json:
        print_json(plain)
    else:
        print(f"{plain['model']} with {folder} merged in: {out}")
