"""Configs of a run."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator

from .case import CANARY, STALL, WORDS, Bytes, Case
from .writing import written

NUMBERS = ("inf", "-inf", "nan", "1e400", "true", "1979-05-27", "[]", "{}", "''")
NAMES = ("__class__", "__init__", "model_config", "__dict__", CANARY)
NAMED = {
    "key": "{} = 1",
    "method": "method = '{}'",
    "strategy": "strategy = [{{kind = '{}'}}]",
    "init": "adapter.init = '{}'",
}


def configs() -> Iterator[Case]:
    """All of them."""
    for name, (data, refused) in {**unreadable(), **values()}.items():
        yield Case(f"config/{name}", "config", written("c.toml", data), refused)


def unreadable() -> Bytes:
    """What is no TOML, or no config that anyone would write."""
    return {
        "empty": ("", None),
        "not UTF-8": (b"\xff\xfe\0", True),
        "NUL": ("seed = 1\0", True),
        "BOM": (b"\xef\xbb\xbfseed = 1\n", None),
        "random bytes": (random.Random(1).randbytes(5000), True),
        "half": ("[stream]\nkind = 'inst", True),
        "duplicate key": ("seed = 1\nseed = 2\n", True),
        "duplicate table": ("[train]\nlr = 1\n[train]\nlr = 2\n", True),
        "deep lists": ("strategy = " + "[" * 100_000 + "]" * 100_000, True),
        "500 deep lists": ("strategy = " + "[" * 500 + "]" * 500, True),
        "deep tables": ("strategy = " + "{a=" * 50_000 + "1" + "}" * 50_000, True),
        "deep dotted key": (".".join("a" * 20_000) + " = 1", True),
        "deep header": ("[" + ".".join("a" * 20_000) + "]", True),
        "huge number": ("seed = " + "9" * 100_000, True),
        "huge hexadecimal": ("seed = 0x" + "f" * 100_000, True),
        "huge exponent": ("train.lr = 1e999999999", True),
        "40 MB": ("# " + "x" * (40 << 20), True),
        "100,000 keys": ("".join(f"k{i} = 1\n" for i in range(100_000)), True),
        "100,000 strategies": ("[[strategy]]\nkind = 'l2'\n" * 100_000, True),
        "a million sites": ("adapter.sites = [" + "'a'," * 1_000_000 + "]", True),
        "sites of regular expressions": (f"adapter.sites = ['{STALL}']", None),
        "glob that stalls": ("adapter.sites = ['" + "*a" * 5000 + "']", None),
    }


def values() -> Bytes:
    """Sound TOML with values that name something else, or nothing."""
    made: dict[str, tuple[str, bool | None]] = {}
    for value in NUMBERS:
        made[f"lr {value}"] = f"train.lr = {value}", True
        made[f"rank {value}"] = f"adapter.rank = {value}", True
    made["rank of 10^18"] = "adapter.rank = 1000000000000000000", None
    made["device of a library"] = f"train.device = '{CANARY}'", True
    for name in NAMES:
        made |= {f"{word} {name}": (text.format(name), True) for word, text in NAMED.items()}
    made["class to make"] = f"[objective]\nkind = 'classify'\n_target_ = '{CANARY}.run'", True
    made["python tag"] = f"strategy = ['!!python/object/apply:{CANARY}.run']", True
    for word in WORDS[:6]:
        made[f"stream called {word!r}"] = f"stream.name = {json.dumps(word)}", True
        made[f"rows in {word!r}"] = f"stream.name = 'x'\nstream.train = {json.dumps(word)}", None
    made["remote code for what is not there"] = "model.name = './base'\nmodel.trust_remote_code = true", True
    return made
