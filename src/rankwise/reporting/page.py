"""The report: one page that needs nothing but itself, of one run or of several side by side.

It holds no script and asks for nothing over the network, which its content security policy enforces; every figure names
the files and keys its numbers come from.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from rankwise.errors import RankwiseError
from rankwise.files import write_file
from rankwise.learning.run import Watch
from rankwise.reporting import elements, facts, figures, records
from rankwise.reporting.compare import KEYS, Places, compare, compare_tables, listed, run_folders
from rankwise.reporting.drawing import COLOURS, STYLE
from rankwise.reporting.figures import Figure, Rows
from rankwise.reporting.markup import Markup, joined, tag
from rankwise.reporting.records import Record
from rankwise.version import __version__

NAME = "report.html"
ROOM = 600_000
"""Characters for the figures of single runs on a page that compares them."""
UNWRITABLE = (RankwiseError, OSError, ArithmeticError, LookupError, TypeError, ValueError)
"""What may come in a page's way: no room, no rights, or what a user's own parts report and no figure knows."""
POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def report(
    paths: Places, out: str | Path | None = None, baseline: str | None = None, reading: Sequence[str] = ()
) -> tuple[Path, list[str]]:
    """Write the page of the runs that `paths` name, of one or of several compared; return where, and what was left out.

    Args:
        paths: a folder of a run, or that holds runs; or several.
        out: the file. Default: report.html in the only path, or in the folder that holds all runs.
        baseline: label of the row that the others are compared with. Default: the first.
        reading: what to say of several runs before their figures.

    Raises:
        DataError: no run is finished.
        UsageError: no such folder or baseline.
        StorageError: a file cannot be read or written.

    """
    paths = listed(paths)
    folders = run_folders(paths)
    if len(folders) == 1:
        text, notes = page_of_run(records.read(folders[0])), []
    else:
        text, notes = page_of_runs(paths, baseline, reading)
    out = Path(out) if out else place_of(paths, folders)
    write_file(out, text.encode())
    return out, notes


def left_behind(folder: Path, watch: Watch, paths: Sequence[Path] = (), reading: Sequence[str] = ()) -> Path | None:
    """Write the page of a run that has just ended to its folder; a page that cannot be written is told, no more.

    `paths`: the runs to show, where they are others than the one in `folder`. Only the first process writes.
    """
    if os.environ.get("RANK", "0") != "0":
        return None
    try:
        return report(paths or [folder], folder / NAME, reading=reading)[0]
    except UNWRITABLE as error:
        said = str(error) if isinstance(error, RankwiseError | OSError) else f"{type(error).__name__}: {error}"
        watch.note(f"no report was written: {said}; the run is complete, `rankwise report {folder}` tries again")
        return None


def place_of(paths: Sequence[Path], folders: Sequence[Path]) -> Path:
    """Return where a page goes unless told otherwise."""
    if len(paths) == 1:
        return paths[0] / NAME
    parents = [set(folder.resolve().parents) for folder in folders]
    return max(set.intersection(*parents), key=lambda folder: len(folder.parts)) / NAME


def page_of_run(record: Record) -> str:
    """Return the page of one run."""
    results, count = record.results, len(record.tasks)
    loss = figures.training({results["method"]: [record]})
    parts = {
        "result": ("What came out", facts.headline(record)),
        "accuracy": ("Scores", _shown(figures.scores(record))),
        "adapter": ("Ranks and gates", _adapter(record)),
        "training": ("Training", _shown(loss) if loss else elements.paragraph("No step was logged.")),
        "configuration": ("Configuration", facts.configuration(record)),
        "environment": ("Environment", facts.environment(record)),
        "provenance": ("Provenance", facts.provenance(record)),
    }
    told = f"{count} task{'s' * (count > 1)}, learnt on {results['model']} with seed {results['seed']}"
    return document(f"{results['method']} on {results['stream']}", f"{told}; scores are {results['metric']}", parts)


def page_of_runs(
    paths: Sequence[Path], baseline: str | None = None, reading: Sequence[str] = ()
) -> tuple[str, list[str]]:
    """Return the page of several runs, compared where they can be, and what was left out."""
    found = compare(paths, KEYS, baseline)
    parts: dict[str, tuple[str, Markup]] = {}
    for i, table in enumerate(found["tables"]):
        rows = figures.rows_of(table)
        title = f"{table['stream']} on {table['model']}"
        parts[f"compared{i + 1}"] = (f"Compared: {title}", _compared(table, rows, f"c{i + 1}-"))
        parts[f"runs{i + 1}"] = (f"Each run: {title}", _runs(rows, f"r{i + 1}-"))
        parts[f"settings{i + 1}"] = (f"Configuration, environment, provenance: {title}", facts.together(rows))
    count = sum(len(row["folders"]) for table in found["tables"] for row in table["rows"])
    methods = len({row["method"] for table in found["tables"] for row in table["rows"]})
    streams = ", ".join(dict.fromkeys(table["stream"] for table in found["tables"]))
    lead = f"{count} runs, {methods} method{'s' * (methods > 1)}"
    notes = [elements.paragraph(f"Left out: {note}.", "note") for note in found["notes"]]
    told = tag("ul", *(tag("li", line) for line in reading), class_="reading") if reading else Markup()
    return document(f"Runs on {streams}", lead, parts, joined(told, *notes)), found["notes"]


def _compared(table: Mapping[str, Any], rows: Rows, prefix: str) -> Markup:
    texts = joined(*(elements.of_text(text) for text in compare_tables({"tables": [table]})))
    where = elements.source("`results.json` of each run, keys as the columns say; differences are paired by seed")
    return joined(texts, where, _shown(figures.of_rows(table, rows), prefix))


def _runs(rows: Rows, prefix: str) -> Markup:
    """Return the matrix and the gates of every run, folded away, as long as there is room on the page."""
    pieces, room = [], ROOM
    for i, (label, runs) in enumerate(rows.items()):
        for record in runs:
            name = f"{prefix}{i + 1}-{record.results['seed']}-"
            inside = _shown([figures.matrix(record), *figures.gates(record)], name, 4) if room > 0 else Markup()
            room -= len(inside)
            where = "" if inside else "; no room is left on this page, `rankwise report` shows it alone"
            told = elements.paragraph(f"In `{record.folder}`{where}.")
            pieces.append(elements.folded(tag("h3", f"{label}, seed {record.results['seed']}"), told, inside))
    return joined(*pieces)


def _adapter(record: Record) -> Markup:
    """Return the figures of ranks and gates, and say why there are none of either."""
    drawn, said = figures.adapter(record), []
    if not record.blocks():
        why = "its blocks were folded into the base" if record.adapter else "the method puts none on the base"
        said.append(elements.paragraph(f"No ranks are left beside the base's weights: {why}."))
    if all(figure.name == "ranks" for figure in drawn):
        said.append(elements.paragraph("No gate reported what it did."))
    return joined(*said, _shown(drawn))


def _shown(drawn: Sequence[Figure], prefix: str = "", level: int = 3) -> Markup:
    return tag("div", *(each.on_page(level, prefix) for each in drawn), class_="figures")


def document(title: str, lead: str, parts: Mapping[str, tuple[str, Markup]], before: str = "") -> str:
    """Return a whole page: a title, a line below it, contents, and the parts, each under its name."""
    links = [tag("li", tag("a", head, href=f"#{name}")) for name, (head, _) in parts.items()]
    contents = tag("nav", tag("ul", *links), aria_label="Contents")
    header = tag("header", tag("h1", title), tag("p", lead, class_="lead"), contents)
    sections = [elements.section(name, head, what) for name, (head, what) in parts.items()]
    skip = tag("a", "Skip to the results", class_="skip", href="#main")
    foot = f"Written by rankwise {__version__} from the files named; no script, nothing is loaded from elsewhere."
    body = tag("body", skip, header, tag("main", before, *sections, id="main"), tag("footer", foot))
    head = tag(
        "head",
        Markup('<meta charset="utf-8">'),
        Markup(f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'),
        Markup('<meta name="viewport" content="width=device-width, initial-scale=1">'),
        Markup('<meta name="color-scheme" content="light dark">'),
        tag("title", title),
        tag("style", styles()),
    )
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"


@cache
def styles() -> Markup:
    """Return the style of every page: colours for light and dark, the page's rules and the charts'."""
    light, dark = ("".join(f"--{name}:{pair[i]};" for name, pair in COLOURS.items()) for i in (0, 1))
    sheet = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
    return Markup(f":root{{{light}}}@media (prefers-color-scheme:dark){{:root{{{dark}}}}}\n{sheet}{STYLE}")
