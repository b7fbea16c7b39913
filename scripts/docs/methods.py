"""The pages of the methods, from their records, docstrings and settings, and from what was measured."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import measured
from text import fenced, linked, plain, prose, table, value

from rankwise import papers
from rankwise.adapters import Identity, Pair
from rankwise.adapters.inits import KAIMING
from rankwise.describe import Group, describe, docstring
from rankwise.learning.recipe import Method, rank_stabilised
from rankwise.strategies import STRATEGIES

ROOT = Path(__file__).resolve().parents[2]
PEFT = {
    "exact": "as a LoRA checkpoint, as it is",
    "converted": "converted to one LoRA, exactly",
    "merged": "only merged, as a whole model",
    None: "not at all; `rankwise.save` keeps it",
}
IDENTITY = {"exact": "bit for bit", "close": "but for rounding", "moves": "no: it moves, by definition"}


def page(slug: str) -> str:
    """Return the page of one method."""
    method, found = papers.method(slug), describe(slug)
    lead, _, rule = docstring(method).partition("\n\n")
    parts = [f"# {slug}", linked(plain(lead)), facts(method)]
    parts += ["## Update rule", *rules(method, rule, found.groups)]
    parts += ["## Use it", *use(slug), "## Settings", *settings(method, found.groups)]
    parts += ["## Measured", *evidence(slug), "## What it goes with", goes_with(slug)]
    return "\n\n".join([*parts, "## In the source", source(slug)])


def facts(method: Method) -> str:
    """Return the record as a table."""
    why = "the update depends on the input" if method.live == "adapter" else "nothing but the head learns"
    rows = [
        ("Source", linked(method.paper)),
        ("What it varies", method.axis),
        ("Trained parameters", f"`{method.parameters}`"),
        ("A fresh adapter leaves the output as it was", IDENTITY[method.identity_at_creation]),
        ("A block added later does, too", IDENTITY[method.identity_at_append]),
        ("Merges into the base", "yes" if method.mergeable else f"no: {why}"),
        ("Leaves for PEFT", PEFT[method.peft] if method.live == "adapter" else "nothing to leave: it has no adapter"),
        ("Refuses", "; ".join(method.refuses) or "nothing of its own"),
        ("Claims measured", measured.verdicts(method.slug)),
    ]
    return table(("", ""), rows)


def rules(method: Method, rule: str, groups: Sequence[Group]) -> Iterator[str]:
    """Yield the method's own rule, then what its parts say of themselves, then the symbols that all share."""
    if rule:
        yield prose(rule)
    for title, part in parts_of(method, groups):
        yield f"### {title}: {part.__name__}"
        yield prose(inspect.getdoc(part) or "")
    if method.live == "adapter":
        yield "### Symbols that all methods share"
        yield COMMON


COMMON = table(
    ("symbol", "shape", "meaning"),
    [
        ("x, y", "[..., in], [..., out]", "input and output of a site"),
        ("W", "[out, in]", "weight of the base; frozen unless the rule says otherwise"),
        ("A", "[r, in]", "down factor; its rows are keys"),
        ("B", "[out, r]", "up factor; its columns are values"),
        ("s, r", "numbers", "`adapter.scale` and `adapter.rank`"),
        ("lr", "number", "`train.lr`, along the schedule"),
    ],
)


def parts_of(method: Method, groups: Sequence[Group]) -> Iterator[tuple[str, type]]:
    """Yield the parts that the method does not share with plain LoRA."""
    if method.live != "adapter":
        return
    named = (
        ("The gate", method.gate, Identity),
        ("The branch", method.form, Pair),
        ("The dynamics", method.dynamics, None),
    )
    yield from ((title, part) for title, part, common in named if part is not None and part is not common)
    for group in groups:
        if group.key == "strategy" and group.given:
            yield "A strategy", STRATEGIES[group.settings[0].value]


def use(slug: str) -> Iterator[str]:
    """Yield a config that runs as it stands, and the commands."""
    yield "A complete run on the handwritten digits inside the package, in seconds on one core:"
    yield fenced("toml", CONFIG.format(slug=slug), f"{slug}.toml")
    yield fenced("console", f"$ rankwise show {slug}\n$ rankwise run {slug}.toml --out runs/{slug}")


CONFIG = """method = "{slug}"

[stream]
name = "digits"
classes_per_task = 5
train_limit = 40
test_limit = 20

[train]
steps = 8"""


def settings(method: Method, groups: Sequence[Group]) -> Iterator[str]:
    """Yield the tables of the method's own settings, and the defaults in which it differs from the common ones."""
    own = [
        g for g in groups if g.given and g.settings and g.key in ("adapter.gate", "adapter.form", "adapter.dynamics")
    ]
    own += [group for group in groups if group.key == "strategy" and group.given]
    for group in own:
        yield f"`{'[[strategy]]' if group.repeats else f'[{group.key}]'}`"
        yield setting_table(group)
    changed = [(f"`{key}`", value(default)) for key, default in flat(method.defaults)]
    if changed:
        yield "Defaults that differ from the common ones:"
        yield table(("key", "default"), changed)
    if not own and not changed:
        yield "It has none of its own."
    yield "All others: [Config](../config.md)."


def setting_table(group: Group) -> str:
    """Return key, default, choices and meaning of the settings of one table."""
    rows = []
    for setting in group.settings:
        choices = [choice for choice in setting.choices if not isinstance(choice, bool)]
        among = f" One of {', '.join(f'`{choice}`' for choice in choices)}." if len(choices) > 1 else ""
        rows.append((f"`{setting.key.rpartition('.')[2]}`", value(setting.value), setting.doc + among))
    return table(("key", "default", "meaning"), rows)


def flat(values: Any, before: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the leaves of nested tables with their dotted keys; lists of strategies have tables of their own."""
    for key, found in values.items():
        if isinstance(found, dict):
            yield from flat(found, f"{before}{key}.")
        elif key != "strategy":
            yield f"{before}{key}", found


def evidence(slug: str) -> Iterator[str]:
    """Yield what was measured of the method: scores at tuned rates, claims with their verdicts."""
    scores, claims = measured.of_method(slug), measured.claims(slug)
    if scores:
        yield (
            "Means over seeds with 95 % Student intervals; *picked*: each seed's rate by its validation rows. How they "
            "were measured: [Measured figures](../figures.md)."
        )
        yield scores
    if claims:
        yield "Published claims in miniature:"
        yield measured.claim_table(claims, "../claims.md")
    if not scores:
        yield (
            "No comparison at a tuned learning rate has been measured yet; the defaults are those of the source or of "
            "short trials. Pick the rate for your data: `rankwise sweep`."
        )
    if not claims:
        yield "No published claim of it is measured in miniature."


@cache
def composition() -> tuple[list[dict[str, dict[str, str]]], dict[str, str]]:
    """Return both tables of docs/composition.md, each a cell by method and part, and the numbered reasons."""
    text = (ROOT / "docs" / "composition.md").read_text(encoding="utf-8")
    tables: list[dict[str, dict[str, str]]] = []
    for part in text.split("\n## "):
        rows = [[c.strip(" `") for c in line.strip("|").split("|")] for line in part.splitlines() if line[:2] == "| "]
        if rows:
            tables.append({row[0]: dict(zip(rows[0][1:], row[1:], strict=True)) for row in rows[2:]})
    return tables, dict(re.findall(r"^(\d+)\. (.*)$", text, flags=re.MULTILINE))


def goes_with(slug: str) -> str:
    """Return which strategies and dynamics it was tried with, and the reasons of those it refuses."""
    tables, reasons = composition()
    if slug not in tables[0]:
        return "Not tried yet: see [What goes with what](../composition.md)."
    lines = []
    for what, tried in zip(("beside the strategies", "with the dynamics of"), tables, strict=True):
        goes = ", ".join(f"`{name}`" for name, cell in tried[slug].items() if cell == "yes" and name != "alone")
        lines.append(f"- trains, stops and resumes to the bit {what}: {goes or 'none'}")
        marks = dict.fromkeys(cell.strip("[]") for cell in tried[slug].values() if cell.startswith("["))
        lines += [f"- refused: {reasons[mark]}" for mark in marks]
    return "\n".join(lines)


def source(slug: str) -> str:
    """Return where the method and its test lie."""
    stem = slug.replace("-", "_")
    folder = f"src/rankwise/papers/{stem}"
    file = f"{folder}.py" if (ROOT / f"{folder}.py").is_file() else f"{folder}/"
    tests = [f"tests/papers/test_{stem}.py", "tests/papers/test_properties.py"]
    return ", ".join(f"`{name}`" for name in [file, *(test for test in tests if (ROOT / test).is_file())])


def varies(method: Method) -> str:
    """Return the seams at which the method differs from plain LoRA, and what it changes besides."""
    seams = {
        "gate": method.gate is not Identity,
        "form": method.form is not Pair,
        "init": method.init is not KAIMING,
        "dynamics": method.dynamics is not None,
        f"growth ({method.growth})": method.growth != "keep",
    }
    losses = [entry["kind"] for entry in method.defaults.get("strategy", ())]
    found = [*(name for name, holds in seams.items() if holds), *other(method), *losses]
    return ", ".join(found) or "nothing: plain LoRA"


def other(method: Method) -> list[str]:
    """Say what the method changes besides the seams, in a few words each."""
    facts = {
        "base learns": method.live == "base",
        "head alone": method.live == "head",
        "all tasks at once": method.order == "at-once",
        "task known": method.oracle,
        "edits the base": method.init.residual or (method.dynamics is not None and method.dynamics.folds),
        "4-bit base": "model" in method.defaults,
        "scale": method.scaling is rank_stabilised,
    }
    return [name for name, holds in facts.items() if holds]


def index() -> str:
    """Return the page that lists all methods by the seams they vary."""
    rows = []
    for slug in papers.slugs():
        method = papers.method(slug)
        merges = "-" if method.live != "adapter" else "yes" if method.mergeable else "no"
        leaves = "-" if method.live != "adapter" else method.peft or "no"
        rows.append((f"[{slug}]({slug}.md)", method.title, varies(method), merges, leaves, measured.verdicts(slug)))
    head = ("method", "what it is", "differs in", "merges", "PEFT", "claims")
    return "\n\n".join([INDEX, table(head, rows), f"{len(rows)} methods; the same as JSON: `rankwise methods --json`."])


INDEX = """# Methods

Nearly every method is a sum of gated rank-1 updates, `y = base(x) + s B gate(A x)`, and a rule for what may move
when. *Differs in* names the [seams](../concepts.md) at which it does not do as plain LoRA does; each of these parts can
be taken by itself into another method's config. Which to take: [Choosing a method](../choosing.md)."""
