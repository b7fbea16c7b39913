"""A short run on a base with a language head: two instruction tasks, which are answered in words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import rankwise

ROWS = [("the cat sits", "good"), ("the dog runs", "bad"), ("a cat runs far", "good"), ("a dog sits on a mat", "bad")]


def learnt(base: Path, folder: Path, method: str = "lora") -> Path:
    """Learn both tasks on `base`; return the run's folder, in `folder`."""
    for name in ("one", "two"):
        lines = [json.dumps({"text": f"{a} {'?' * i}", "reply": b}) for i in range(3) for a, b in ROWS]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    files = [{"name": name, **dict.fromkeys(("train", "test"), f"{folder}/{name}.jsonl")} for name in ("one", "two")]
    config: dict[str, Any] = {
        "method": method,
        "model": {"name": str(base), "max_length": 24},
        "stream": {"name": "asked", "kind": "instruction", "tasks": files, "input": "text", "target": "reply"},
        "objective": {"kind": "language", "max_new_tokens": 6},
        "adapter": {"rank": 4},
        "train": {"steps": 4, "batch_size": 4, "lr": 0.03, "device": "cpu", "threads": 1},
    }
    config["stream"] |= {"prompt": "question : {text} answer :", "validation": 0}
    if method == "finetune":
        del config["adapter"]
    rankwise.run(config, out=folder / method)
    return folder / method
