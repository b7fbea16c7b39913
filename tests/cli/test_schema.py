from __future__ import annotations

import json

from rankwise.cli import main


def test_schema_is_closed_and_documented(capsys) -> None:
    assert main(["schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert schema["additionalProperties"] is False
    assert set(schema["properties"]) >= {
        "seed",
        "method",
        "model",
        "stream",
        "objective",
        "adapter",
        "strategy",
        "train",
    }
    rank = schema["$defs"]["AdapterSettings"]["properties"]["rank"]
    assert (rank["minimum"], rank["default"]) == (1, 8)
    assert rank["description"].startswith("Ranks of a block.")
