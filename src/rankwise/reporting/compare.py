"""Several runs side by side: means with intervals over seeds, and differences from a baseline, paired by seed.

Runs are pooled as seeds of one row only if their configs agree in everything but the seed; rows are compared only
within one stream, one base and one metric.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankwise.config import load_config
from rankwise.errors import DataError, UsageError, nearest
from rankwise.files import load_object
from rankwise.learning.intervals import bootstrap_interval, difference
from rankwise.learning.metrics import Interval, mean_interval
from rankwise.reporting.tables import SUMMARY, Table

LARGEST_RESULTS = 1 << 28
"""Bytes of results.json: diagnostics of long streams are large."""
TITLES = {key: title for title, key in SUMMARY}
KEYS = tuple(TITLES)[:3]
"""Columns unless others are asked for; the validation average picks, and is no result."""
NO_DIFFERENCE = ("seed", "train.threads", "train.device", "train.workers")
"""Settings in which the seeds of one row may differ."""


@dataclass(frozen=True)
class Saved:
    """A finished run as `compare` reads it."""

    folder: Path
    results: Mapping[str, Any]
    settings: Mapping[str, Any]
    """The complete config, one entry a key, as in {"train.lr": 0.001}."""

    @property
    def place(self) -> tuple[Any, ...]:
        """What two runs must share to be compared."""
        found = self.results
        return found["stream"], found["model"], found["metric"], tuple(found["tasks"])

    @property
    def kind(self) -> tuple[tuple[str, str], ...]:
        """What two runs must share to be seeds of one row."""
        return tuple((key, repr(value)) for key, value in self.settings.items() if key not in NO_DIFFERENCE)


Places = str | Path | Iterable[str | Path]
"""One folder, or several: of runs, or such that hold runs."""


def listed(paths: Places) -> list[Path]:
    """Return the folders as a list."""
    return [Path(path) for path in ([paths] if isinstance(paths, str | Path) else paths)]


def run_folders(paths: Iterable[Path]) -> list[Path]:
    """Return the folders of runs that `paths` name: each is one, or holds some side by side (a sweep's, a demo's).

    Raises:
        UsageError: a path that is neither.

    """
    found: list[Path] = []
    for path in paths:
        inside = [path] if (path / "config.toml").is_file() else sorted(p.parent for p in path.glob("*/config.toml"))
        if not inside:
            what = "holds no run" if path.is_dir() else "no such folder"
            near = [each.name for each in path.parent.glob("*") if each.is_dir()] if path.parent.is_dir() else []
            raise UsageError(f"{path}: {what}; {nearest(path.name, near) if near else 'name folders of runs'}")
        found += [each for each in inside if each not in found]
    return found


def compare(paths: Places, keys: Sequence[str] = KEYS, baseline: str | None = None) -> dict[str, Any]:
    """Compare the runs in `paths`, as JSON values.

    Args:
        paths: a folder of a run, or that holds runs; or several.
        keys: numbers of results.json to compare.
        baseline: label of the row that the others are compared with. Default: the first.

    Returns:
        tables: one for each stream, base and metric. Each has stream, model, metric, tasks (a count), baseline, rows
        (label, method, seeds, folders, values and intervals by key: mean, bootstrap low
        and high, Student's t_low and t_high, n) and differences (label, key, mean, low, high, n, seeds, higher).
        notes: what was left out, and why.

    Raises:
        UsageError: no such folder, key or baseline.

    """
    notes: list[str] = []
    runs = _whole(run_folders(listed(paths)), notes)
    known = _numbers(runs)
    for key in keys:
        if key not in known:
            raise UsageError(f"--keys {key!r}: not a number of results.json; {nearest(key, known)}")
    places: dict[Any, list[Saved]] = {}
    for run in runs:
        places.setdefault(run.place, []).append(run)
    found = [_labelled(_seeds(group, notes)) for group in places.values()]
    _check_baseline(baseline, [label for named in found for label in named])
    return {"tables": [_table(named, keys, baseline) for named in found], "notes": notes}


def check_baseline(paths: Iterable[Path], baseline: str) -> None:
    """Raise UsageError with the nearest label if the runs in `paths` make no row called `baseline`; see `compare`."""
    runs = _whole(run_folders(paths), [])
    places = {run.place for run in runs}
    found = [_labelled(_seeds([run for run in runs if run.place == place], [])) for place in places]
    _check_baseline(baseline, [label for named in found for label in named])


def _check_baseline(baseline: str | None, labels: Sequence[str]) -> None:
    if baseline is not None and baseline not in labels:
        raise UsageError(f"--baseline {baseline!r}: no such row; {nearest(baseline, set(labels))}")


def _whole(folders: Sequence[Path], notes: list[str]) -> list[Saved]:
    """Read finished runs; say which are not finished."""
    found = []
    for folder in folders:
        if not (folder / "results.json").is_file():
            notes.append(f"{folder} is left out: it is not finished; `rankwise resume {folder}`")
            continue
        results = load_object(folder / "results.json", LARGEST_RESULTS, keys=("matrix", "tasks"))
        if len(results["matrix"]) < len(results["tasks"]):
            learnt = f"{len(results['matrix'])} of {len(results['tasks'])} tasks"
            notes.append(f"{folder} is left out: it has learnt {learnt}; `rankwise resume {folder}`")
            continue
        found.append(Saved(folder, results, settings_of(folder)))
    if not found:
        raise DataError("\n".join(["none of these runs is finished, so there is nothing to compare", *notes]))
    return found


def _numbers(runs: Sequence[Saved]) -> list[str]:
    """Return the keys of results.json that hold a number, or None where it is not known."""
    pairs = (pair for run in runs for pair in run.results.items())
    return sorted({key for key, value in pairs if isinstance(value, int | float | None) and key != "seed"})


def settings_of(folder: Path) -> dict[str, Any]:
    """Return the complete config of a run, one entry a key, as in {"train.lr": 0.001}."""
    return _flat(load_config(folder / "config.toml").model_dump())


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested tables as one, keys joined by dots.

    >>> _flat({"seed": 1, "train": {"lr": 0.1}})
    {'seed': 1, 'train.lr': 0.1}
    """
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat.update(_flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value})
    return flat


def _seeds(runs: Sequence[Saved], notes: list[str]) -> list[dict[int, Saved]]:
    """Put the runs that differ in the seed only together, by seed; say which repeat another."""
    groups: dict[Any, dict[int, Saved]] = {}
    for run in runs:
        seeds = groups.setdefault(run.kind, {})
        if (first := seeds.setdefault(run.results["seed"], run)) is not run:
            notes.append(f"{run.folder} is left out: it repeats {first.folder}, config and seed")
    return list(groups.values())


def _table(named: Mapping[str, Mapping[int, Saved]], keys: Sequence[str], baseline: str | None) -> dict[str, Any]:
    rows = [_row(label, group, keys) for label, group in named.items()]
    first = next((row for row in rows if row["label"] == baseline), rows[0])
    others = [row for row in rows if row is not first]
    found = next(run.results for group in named.values() for run in group.values())
    return {
        **{key: found[key] for key in ("stream", "model", "metric")},
        "tasks": len(found["tasks"]),
        "baseline": first["label"],
        "rows": rows,
        "differences": [d for row in others for key in keys if (d := _difference(row, first, key)) is not None],
    }


def _labelled(groups: Sequence[dict[int, Saved]]) -> dict[str, dict[int, Saved]]:
    """Name each group by its method, and by the settings that differ where a method has several groups."""
    heads = [next(iter(group.values())) for group in groups]
    named: dict[str, dict[int, Saved]] = {}
    for head, group in zip(heads, groups, strict=True):
        method = head.results["method"]
        named[" ".join([method, *(f"{k}={_short(v)}" for k, v in _apart(head, heads).items())])] = group
    return named


def _apart(head: Saved, heads: Sequence[Saved]) -> dict[str, Any]:
    """Return the settings of `head` in which another row of its method differs."""
    same = [other.settings for other in heads if other.results["method"] == head.results["method"]]
    keys = sorted({key for settings in same for key in settings} - set(NO_DIFFERENCE))
    differ = [key for key in keys if len({repr(settings.get(key)) for settings in same}) > 1]
    return {key: head.settings.get(key) for key in differ}


def _short(value: Any) -> str:
    return f"{value:.10g}" if isinstance(value, float) else re.sub(r"\s+", "", str(value))


def _row(label: str, group: Mapping[int, Saved], keys: Sequence[str]) -> dict[str, Any]:
    seeds = sorted(group)
    values = {key: [group[seed].results.get(key) for seed in seeds] for key in keys}
    return {
        "label": label,
        "method": group[seeds[0]].results["method"],
        "seeds": seeds,
        "folders": [str(group[seed].folder) for seed in seeds],
        "values": values,
        "intervals": {key: _with_ends(found) for key, found in values.items()},
    }


def _with_ends(values: Sequence[float | None]) -> dict[str, Any] | None:
    """Return the bootstrap's and Student's interval of values that are all known."""
    known = [value for value in values if value is not None]
    student = mean_interval(values)
    if student is None:
        return None
    return {**_named(bootstrap_interval(known)), "t_low": student.low, "t_high": student.high}


def _named(interval: Interval) -> dict[str, Any]:
    return dict(zip(("mean", "low", "high", "n"), interval, strict=True))


def _difference(row: Mapping[str, Any], first: Mapping[str, Any], key: str) -> dict[str, Any] | None:
    """Return row minus baseline for one key, or None where either lacks it."""
    ours, theirs = (
        {seed: value for seed, value in zip(side["seeds"], side["values"][key], strict=True) if value is not None}
        for side in (row, first)
    )
    if not ours or not theirs:
        return None
    found = difference(ours, theirs)
    return {
        "label": row["label"],
        "key": key,
        **_named(found.interval),
        "seeds": list(found.seeds),
        "higher": found.higher,
    }


def compare_tables(comparison: Mapping[str, Any]) -> list[Table]:
    """Return what `compare` found as tables of text: rows with intervals, then the differences."""
    return [
        drawn for table in comparison["tables"] for drawn in (_rows_table(table), _differences_table(table)) if drawn
    ]


def _rows_table(table: Mapping[str, Any]) -> Table:
    keys = list(table["rows"][0]["values"])
    rows = [
        (row["label"], str(len(row["seeds"])), *(ends(row["intervals"][key]) for key in keys)) for row in table["rows"]
    ]
    title = f"{table['stream']} ({table['tasks']} tasks) on {table['model']}: mean of {table['metric']} over seeds"
    columns = ("method", "seeds", *map(_title, keys))
    return Table(f"{title} [95 % bootstrap interval]", columns, tuple(rows))


def _differences_table(table: Mapping[str, Any]) -> Table | None:
    rows = [
        (
            found["label"],
            _title(found["key"]),
            ends(found, sign=True),
            _pairs(len(found["seeds"])),
            f"{found['higher']}/{len(found['seeds'])}" if found["seeds"] else "-",
        )
        for found in table["differences"]
    ]
    columns = ("method", "figure", "difference", "over", "higher in")
    return Table(f"minus {table['baseline']}", columns, tuple(rows), numbers_from=2) if rows else None


def _pairs(count: int) -> str:
    return f"{count} pair{'s' * (count > 1)}" if count else "unpaired"


def _title(key: str) -> str:
    return TITLES[key] if key in TITLES else key.replace("_", " ")


def ends(interval: Mapping[str, Any] | None, *, sign: bool = False) -> str:
    """Write a mean and its interval.

    >>> ends({"mean": 0.5, "low": 0.4, "high": 0.61}), ends({"mean": 0.5, "low": None, "high": None}, sign=True)
    ('0.500 [0.400, 0.610]', '+0.500')
    """
    if interval is None:
        return "-"
    mean, low, high = (_figure(interval[key], sign) for key in ("mean", "low", "high"))
    return mean if interval["low"] is None else f"{mean} [{low}, {high}]"


def _figure(value: float | None, sign: bool) -> str:
    """Write three decimals, or a whole number where there are as many digits before the point."""
    form = ",.0f" if value is not None and abs(value) >= 1000 else ".3f"
    return "-" if value is None else f"{round(value, 3) + 0.0:{'+' if sign else ''}{form}}"
