"""`rankwise run`: learn a stream."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter as Option

from rankwise.cli.common import Json, check_config, check_no_run, check_out, loading, print_json, stoppable


def run(
    config: Path,
    /,
    *,
    set_: Annotated[tuple[str, ...], Option(name="--set", negative=(), show_default=False)] = (),
    out: Path | None = None,
    json: Json = False,
) -> None:
    """Learn the stream that a config describes, and print the accuracy matrix.

    Example: rankwise run mora.toml --set adapter.rank=4 --out runs/rank4

    Args:
        config: A TOML file; `rankwise show METHOD > mora.toml` writes a complete one.
        set_: key=value laid over the config, as in train.lr=0.003; may be given again and again.
        out: Folder to write the run to. Default: runs/<stream>-<method>-seed<seed>.

    """
    with loading():
        check_config(config, set_)
        check_out(out)
        check_no_run(out)
        from rankwise import api
        from rankwise.reporting.terminal import progress, show_results

        folder = out or api.default_folder(api.resolve(config, set_)[0])
    with stoppable(folder), progress() as watch:
        finished = api.run(config, out=folder, overrides=set_, watch=watch)
    if json:
        print_json(finished.results)
    else:
        show_results(finished.results, finished.path, report=finished.report)
