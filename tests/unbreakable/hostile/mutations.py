"""Sound files with seeded harm: eight of each."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from .case import Case
from .tables import sound_parquet
from .writing import altered, holding, sealed, unsealed, written

WITHIN = {
    ("ours", "adapter"): ("adapter.json", "adapter.safetensors"),
    ("peft", "adapter"): ("adapter_config.json", "adapter_model.safetensors"),
    ("base", "base"): ("config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"),
}
"""(Folder, what opens it) -> its files."""
TOKENS = (b"9" * 30, b'"', b"{", b"}", b"[", b"-1", b"null", b"\0", b"1e999")


def mutations(sound: Path) -> Iterator[Case]:
    """All of them."""
    rng = random.Random(7)
    for name, data in sound_rows().items():
        for i in range(8):
            yield Case(f"mutated/{name} {i}", "rows", written(name, mutated(data, rng)))
    config = (sound / "run" / "config.toml").read_bytes()
    yield from (Case(f"mutated/config {i}", "config", written("c.toml", mutated(config, rng))) for i in range(12))
    for (source, kind), names in WITHIN.items():
        for name in names:
            for i in range(8):
                harm = holding(name, mutated((sound / source / name).read_bytes(), rng))
                write = altered(sound / source, harm, sealed if source == "ours" else unsealed)
                yield Case(f"mutated/{source}/{name} {i}", kind, write)


def sound_rows() -> dict[str, bytes]:
    """Files of rows, by their names."""
    buffer = io.BytesIO()
    np.savez(buffer, input=np.zeros((4, 2, 2), np.uint8), target=np.array([0, 1, 0, 1]))
    lines = (json.dumps({"input": f"text {i}", "target": "ab"[i % 2]}) + "\n" for i in range(6))
    return {
        "rows.jsonl": "".join(lines).encode(),
        "rows.csv": b"input,target\n" + b"".join(b'"text, %d",%d\n' % (i, i % 2) for i in range(6)),
        "rows.parquet": sound_parquet(),
        "rows.npz": buffer.getvalue(),
    }


def mutated(data: bytes, rng: random.Random) -> bytes:
    """Bytes turned over, cut out, doubled or moved, a few at a time."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        if not changed:
            break
        at, size = rng.randrange(len(changed)), rng.choice((1, 1, 4, 64))
        how = rng.randrange(5)
        if how == 0:
            changed[at] ^= 1 << rng.randrange(8)
        elif how == 1:
            del changed[at : at + size]
        elif how == 2:
            changed[at:at] = changed[at : at + size]
        elif how == 3:
            changed[at : at + size] = rng.randbytes(size)
        else:
            changed[at : at + 1] = rng.choice(TOKENS)
    return bytes(changed)
