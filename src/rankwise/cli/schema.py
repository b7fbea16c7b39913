"""`rankwise schema`: the config's JSON Schema."""

from __future__ import annotations

from rankwise.cli.common import print_json


def schema() -> None:
    """Print the JSON Schema of a config, for editors that complete and check TOML.

    Example: rankwise schema > rankwise.schema.json
    """
    from rankwise.describe import config_schema

    print_json(config_schema())
