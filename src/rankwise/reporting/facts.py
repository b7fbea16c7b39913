"""The words of a report: headline figures, configuration, environment, provenance, each with the file it stands in."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from rankwise.reporting import elements
from rankwise.reporting.compare import NO_DIFFERENCE
from rankwise.reporting.figures import Rows
from rankwise.reporting.markup import Markup, joined
from rankwise.reporting.records import Record
from rankwise.reporting.terminal import duration

SHA = 16
"""Characters of a SHA-256 that are shown where it is one of many."""
SCORES = {
    "final average": "final_average",
    "forgetting (first - last)": "forgetting_first_minus_last",
    "learning accuracy": "learning_accuracy",
    "average incremental": "average_incremental",
    "backward transfer": "backward_transfer",
    "validation final": "validation_final_average",
}
"""Title -> key of results.json."""


def headline(record: Record) -> Markup:
    """Return the figures that matter most, then what the run took."""
    results = record.results
    scores = {title: elements.figure(results[key]) for title, key in SCORES.items()}
    took = {
        "trainable parameters": f"{results['trainable_parameters']:,}",
        "stored bytes": f"{results['stored_bytes']:,}",
        "steps": f"{results['steps']:,}",
        "wall time": duration(results["wall_seconds"]),
        "peak memory": f"{results['peak_memory_bytes'] / 2**20:,.0f} MiB",
    }
    keys = ", ".join(f"`{key}`" for key in SCORES.values())
    where = (
        f"`results.json`: {keys}, `trainable_parameters`, `stored_bytes`, `steps`, `wall_seconds`, `peak_memory_bytes`"
    )
    return joined(_unfinished(record), elements.listed(scores), elements.listed(took), elements.source(where))


def _unfinished(record: Record) -> Markup:
    learnt, count = len(record.results["matrix"]), len(record.tasks)
    if learnt == count:
        return Markup()
    return elements.paragraph(f"{learnt} of {count} tasks are learnt; `rankwise resume` learns the rest.")


def configuration(record: Record) -> Markup:
    """Return every setting."""
    values = {key: said(value) for key, value in record.settings.items() if value is not None}
    return joined(elements.pairs("Every setting of the run", values), elements.source("`config.toml`"))


def environment(record: Record) -> Markup:
    """Return machine and versions."""
    found = record.environment
    plain = {key: said(found[key]) for key in ("python", "platform", "processor_threads", "gpu")}
    whole = elements.pairs("Machine and versions", {**plain, **found["packages"]})
    return joined(whole, elements.source("`environment.json`"))


def provenance(record: Record) -> Markup:
    """Return what the run was made from and what it left: base, data, files and their digests."""
    base, stream = record.environment["base"], record.environment["stream"]
    times = [event["time"][:19].replace("T", " ") for event in record.events]
    about = {
        **{f"base {key}": said(value) for key, value in base.items()},
        **{f"stream {key}": said(stream[key]) for key in ("kind", "seed", "order") if key in stream},
        **({"first event (UTC)": times[0], "last event (UTC)": times[-1]} if times else {}),
        "folder": str(record.folder),
    }
    files = {**record.digests(), **{f"adapter/{name}": entry["sha256"] for name, entry in record.files.items()}}
    return joined(
        _shared(stream),
        elements.pairs("Base, stream and time", about),
        elements.folded("Tasks and their rows", _tasks(stream)),
        elements.folded("Where the rows came from", _sources(stream)),
        elements.folded("Files of this run", elements.pairs("SHA-256 of each file", files, ("file", "SHA-256"))),
        elements.source("`environment.json`: `base`, `stream`; `events.jsonl`: `time`; `adapter/manifest.json`"),
    )


def _shared(stream: Mapping[str, Any]) -> Markup:
    """Warn of test rows that were learnt."""
    shared = stream.get("overlap", {})
    tests = {task["name"]: task["sizes"]["test"] for task in stream.get("tasks", ())}
    found = [f"{shared[name]:,} of {count:,} of '{name}'" for name, count in tests.items() if shared.get(name)]
    told = f"Test rows that are training rows, too, which flatters the scores: {', '.join(found)}."
    return elements.paragraph(told, "note") if found else Markup()


def _tasks(stream: Mapping[str, Any]) -> Markup:
    rows = [
        (task["name"], _range(task["classes"]), *(said(task["sizes"].get(part)) for part in PARTS), _digests(task))
        for task in stream.get("tasks", ())
    ]
    columns = ("task", "classes", *PARTS, f"SHA-256 of its test row ids ({SHA} of 64 characters)")
    return elements.table("Tasks in order, rows of each part", columns, rows, numbers_from=99)


PARTS = ("train", "validation", "test")


def _range(classes: list[int]) -> str:
    text = ", ".join(map(str, classes[:12]))
    return f"{text}, … ({len(classes)})" if len(classes) > 12 else text


def _digests(task: Mapping[str, Any]) -> str:
    return task["ids_sha256"]["test"][:SHA]


def _sources(stream: Mapping[str, Any]) -> Markup:
    rows = [
        (source["name"], said(source.get("rows")), str(source.get("sha256"))[:SHA])
        for source in stream.get("sources", ())
    ]
    return elements.table("Sources of rows", ("source", "rows", f"SHA-256 ({SHA} of 64 characters)"), rows, 99)


def together(rows: Rows) -> Markup:
    """Return, for several runs, settings that differ, settings that agree, environments and what each was made from."""
    heads = {label: runs[0] for label, runs in rows.items()}
    keys = dict.fromkeys(key for record in heads.values() for key in record.settings if key not in NO_DIFFERENCE)
    table = {key: [said(record.settings.get(key)) for record in heads.values()] for key in keys}
    differ = [(key, *values) for key, values in table.items() if len(set(values)) > 1]
    same = {key: values[0] for key, values in table.items() if len(set(values)) == 1 and values[0] != "none"}
    return joined(
        *dict.fromkeys(_shared(record.environment["stream"]) for record in heads.values()),
        elements.table("Settings that differ", ("key", *heads), differ, numbers_from=99),
        elements.folded("Settings that agree", elements.pairs("Settings that agree", same)),
        elements.source("`config.toml` of the first run of each column"),
        elements.folded("Environment and provenance of each run", _made_of(rows)),
        elements.source("`environment.json` of each run"),
    )


def _made_of(rows: Rows) -> Markup:
    lines = []
    for label, runs in rows.items():
        for record in runs:
            found, packages = record.environment, record.environment["packages"]
            versions = ", ".join(f"{name} {version}" for name, version in packages.items())
            machine = f"Python {found['python']}, {found['platform']}, {found['processor_threads']} threads"
            digest = record.digests()["results.json"][:SHA]
            base = str(found["base"]["fingerprint"])[:SHA]
            lines.append((label, str(record.results["seed"]), str(record.folder), base, digest, machine, versions))
    columns = ("run", "seed", "folder", "base fingerprint", "SHA-256 of results.json", "machine", "versions")
    return elements.table("What each run was made from and on", columns, lines, numbers_from=99)


def said(value: Any) -> str:
    """Write a value of JSON as a reader takes it.

    >>> said(None), said(True), said([1, 2]), said("a"), said([{"name": "a", "test": None}])
    ('none', 'true', '[1, 2]', 'a', '[{"name": "a"}]')
    """
    if value is None:
        return "none"
    return value if isinstance(value, str) else json.dumps(_given(value), ensure_ascii=False, default=str)


def _given(value: Any) -> Any:
    """Leave out of tables, also of those in lists, what is not set."""
    if isinstance(value, Mapping):
        return {key: _given(held) for key, held in value.items() if held is not None}
    return [_given(held) for held in value] if isinstance(value, list | tuple) else value
