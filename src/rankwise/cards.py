"""Model cards: the README.md that every artefact carries, for people. Programs never read it, so it may be edited.

A card states what its artefact's own files state: nothing in it depends on the time or the place it was written.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

LIBRARIES = {"rankwise": "rankwise", "peft": "PEFT", "transformers": "transformers"}
TO_FILL = "unknown  # to be filled in: the terms of the base and of the data decide"
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
SHOWN = ("adapter", "objective", "strategy", "train")
"""Sections of a config that a card shows."""


@dataclass(frozen=True)
class Learnt:
    """What a run says of itself in its files."""

    config: Mapping[str, Any]
    stream: Mapping[str, Any]
    """As environment.json records it: tasks, sources."""
    results: Mapping[str, Any]
    """Keys of results.json: stream, seed, tasks, metric, matrix, final_average and so on."""


@dataclass(frozen=True)
class Card:
    """The facts of one artefact."""

    kind: str
    """What it is: "adapter", "PEFT checkpoint", "merged model"."""
    library: str
    """What loads it: a key of LIBRARIES."""
    method: str
    base: Mapping[str, Any]
    """Name, fingerprint and so on, as far as they are known."""
    usage: str
    """Python that loads it; it runs in the artefact's folder."""
    limits: Sequence[str]
    title: str = ""
    """Of the method, and its paper."""
    learnt: Learnt | None = None
    """None: the artefact alone does not say what it was learnt from."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Of the adapter, where no run is known."""

    def text(self) -> bytes:
        """Return the card as Markdown."""
        parts = [self._head(), self._base(), self._usage(), self._method(), self._data(), self._scores()]
        return "\n\n".join([*parts, PROVENANCE, self._limits(), LICENCE]).encode() + b"\n"

    def _head(self) -> str:
        name = str(self.base.get("name") or "")
        hub = [f"base_model: {name}"] if HUB_ID.fullmatch(name) else []
        lines = [f"library_name: {self.library}", *hub, f"license: {TO_FILL}"]
        front = "\n".join([*lines, f"tags: [continual-learning, low-rank-adaptation, {self.method}]"])
        on = f" learnt on {self.learnt.results['stream']}" if self.learnt else ""
        method = f"`{self.method}`" + (f" ({self.title})" if self.title else "")
        what = f"{self.kind[0].upper()}{self.kind[1:]} of the method {method}, loaded with {LIBRARIES[self.library]}."
        return f"---\n{front}\n---\n\n# {self.method}{on}\n\n{what}"

    def _base(self) -> str:
        rows = [(key, f"`{value}`") for key, value in self.base.items() if value is not None and value != ""]
        return "## Base\n\n" + (_table(("fact", "value"), rows) if rows else "Not named.")

    def _usage(self) -> str:
        return f"## How to load it\n\nIn the folder of this file:\n\n```python\n{self.usage.strip()}\n```"

    def _method(self) -> str:
        config = self.learnt.config if self.learnt else {"adapter": self.settings}
        flat = [pair for key in SHOWN for pair in _flat(config.get(key), key)]
        rows = [(f"`{key}`", f"`{json.dumps(value)}`") for key, value in flat]
        return "## Method and settings\n\n" + (_table(("setting", "value"), rows) if rows else "None are recorded.")

    def _data(self) -> str:
        if self.learnt is None:
            return "## Training data\n\nNot recorded in this artefact; describe it here."
        sizes = [(task["name"], *(_said(task["sizes"].get(part)) for part in PARTS)) for task in self._tasks()]
        sources = [(_name(s["name"]), _said(s.get("rows")), f"`{s.get('sha256')}`") for s in self._listed("sources")]
        told = (
            f"Stream `{self.learnt.results['stream']}`, tasks learnt in this order; test rows were never learnt from."
        )
        pieces = [told, _table(("task", *PARTS), sizes), _table(("source", "rows", "SHA-256"), sources)]
        return "\n\n".join(["## Training data", *(piece for piece in pieces if piece)])

    def _scores(self) -> str:
        if self.learnt is None or not self.learnt.results["matrix"]:
            return "## Scores\n\nNot recorded in this artefact."
        found = self.learnt.results
        last = found["matrix"][-1]
        own = [row[j] for j, row in enumerate(found["matrix"])] + [None] * (len(last) - len(found["matrix"]))
        rows = [(t, _score(a), _score(b)) for t, a, b in zip(found["tasks"], own, last, strict=True)]
        means = [(key.replace("_", " "), _score(found[key])) for key in SCORES]
        told = f"{found['metric']} on test rows, seed {found['seed']}: one run, no interval."
        tables = [_table(("task", "just learnt", "at the end"), rows), _table(("over all tasks", "value"), means)]
        return "\n\n".join(["## Scores", told, *tables])

    def _limits(self) -> str:
        return "\n".join(["## Limits", "", *(f"- {line}" for line in self.limits)])

    def _tasks(self) -> Iterable[Mapping[str, Any]]:
        return self._listed("tasks")

    def _listed(self, key: str) -> Sequence[Mapping[str, Any]]:
        return self.learnt.stream.get(key, ()) if self.learnt else ()


PARTS = ("train", "validation", "test")
SCORES = ("final_average", "learning_accuracy", "forgetting_first_minus_last", "backward_transfer")
"""Keys of results.json that a card shows."""
PROVENANCE = """## Provenance

`provenance.json` beside this file holds the SHA-256 of the base, of the data and of what it was made from, and the code
that made it; `manifest.json` that of every other file here."""
LICENCE = """## Licence

Not stated. What was learnt from a base and from data is bound by the terms of both; whoever publishes this fills in
`license` above and names them here."""
LOADED = """
from pathlib import Path

from rankwise.saved import learnt

backbone, _ = learnt(Path("."){base})
model = backbone.module  # the base with what was learnt on it
"""
USAGE = {
    "adapter": LOADED.format(base=""),
    "base": LOADED.format(base=', base="{name}"'),
    "head": """
from pathlib import Path

from rankwise.models import load_backbone
from rankwise.storage import load_tensors

backbone = load_backbone("{name}")
head = load_tensors(Path("head.safetensors"))  # over the features that the base gives
""",
    "module": """
import rankwise

base = ...  # the module that it was learnt on: its weights have the fingerprint above
model = rankwise.load(base, ".")
""",
    "peft": """
from peft import PeftModel{imported}

base = {base}
model = PeftModel.from_pretrained(base, ".")
""",
    "merged": """
from transformers import {name}

model = {name}.from_pretrained(".")
""",
}
"""How artefacts are loaded; {name} stands for the base's name or the class of the merged model."""


AUTO = {"causal": "AutoModelForCausalLM", "seq2seq": "AutoModelForSeq2SeqLM"}
"""Form of a base's language head -> what loads the base."""


def peft_usage(base: Mapping[str, Any]) -> str:
    """Return how a PEFT checkpoint is loaded onto its base, which may have no name."""
    name, form = base.get("name"), base.get("form")
    if not name:
        return USAGE["peft"].format(imported="", base="...  # the module that it was learnt on")
    if form in AUTO:
        made = f'{AUTO[form]}.from_pretrained("{name}")'
        return USAGE["peft"].format(imported=f"\nfrom transformers import {AUTO[form]}", base=made)
    made = f'load_backbone("{name}").module'
    return USAGE["peft"].format(imported="\nfrom rankwise.models import load_backbone", base=made)


LIMITS = (
    "It answers for the tasks above, in their wording and format; other inputs were not scored.",
    "Scores are of one seed and one order of tasks.",
    "Biases of the base and of the data are in it; none were measured.",
)


def _flat(value: Any, key: str) -> list[tuple[str, Any]]:
    """Return nested tables as pairs, keys joined by dots; lists of tables are numbered.

    >>> _flat({"a": 1, "b": {"c": None, "d": [2]}}, "x")
    [('x.a', 1), ('x.b.d', [2])]
    """
    if isinstance(value, Mapping):
        return [pair for name, inner in value.items() for pair in _flat(inner, f"{key}.{name}")]
    if isinstance(value, list | tuple) and value and isinstance(value[0], Mapping):
        return [pair for i, inner in enumerate(value) for pair in _flat(inner, f"{key}.{i + 1}")]
    return [] if value is None or value in ([], {}) else [(key, value)]


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(_cell(cell) for cell in line)} |" for line in lines)


def _cell(text: str) -> str:
    """Keep a name from ending its cell or its line, or from becoming a tag."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def _name(source: str) -> str:
    """Return a source without the folders of the machine it lay on."""
    return source if ":" in source else PurePath(source).name


def _said(value: object) -> str:
    return "-" if value is None else str(value)


def _score(value: float | None) -> str:
    return "-" if value is None else f"{round(value, 4) + 0.0:.4f}"
