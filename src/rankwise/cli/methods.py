"""`rankwise methods`: what there is."""

from __future__ import annotations

from rankwise.cli.common import Json, print_json


def methods(*, json: Json = False) -> None:
    """List the methods: slug, title, paper, axis, whether it merges, how it leaves for PEFT.

    Example: rankwise methods
    """
    from rankwise import api
    from rankwise.reporting.tables import methods_table, show

    records = api.methods()
    if json:
        print_json(records)
    else:
        show(methods_table(records))
