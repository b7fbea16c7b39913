"""`rankwise show`: one method in full."""

from __future__ import annotations

from rankwise.cli.common import Json, check_method, print_json


def show(method: str, /, *, json: Json = False) -> None:
    """Print a method: what it is, and its complete config with the meaning of every setting.

    Example: rankwise show mora > mora.toml

    Args:
        method: A name that `rankwise methods` lists. The output is TOML and can be run as it stands.

    """
    check_method(method, "method ")
    from rankwise.describe import as_json, as_toml, describe

    description = describe(method)
    if json:
        print_json(as_json(description))
    else:
        print(as_toml(description))
