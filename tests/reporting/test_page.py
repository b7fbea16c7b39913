"""The report: one page, readable without a script and by a program, and every number on it taken from the files."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest
from reader import Page  # pyright: ignore[reportMissingImports]
from runs import SHA, made  # pyright: ignore[reportMissingImports]

import rankwise
from rankwise.errors import DataError, UsageError
from rankwise.learning.run import Watch
from rankwise.reporting.drawing import COLOURS
from rankwise.reporting.page import POLICY, left_behind, report

LIMIT = 2 << 20
"""Bytes of the largest page."""
MARKUP = '"><img src=x onerror=alert(1)> & <script>'


def written(*runs: Path, out: Path | None = None) -> Page:
    path, _ = report(runs, out)
    return Page.of(path)


def compared(folder: Path) -> Path:
    low = ((0.9, None, None), (0.5, 0.8, None), (0.2, 0.3, 0.9))
    for seed in (0, 1):
        made(folder / f"mora-{seed}", seed=seed)
        made(folder / f"lora-{seed}", matrix=low, method="lora", seed=seed, blocks=False)
    return folder


CASES = {
    "three tasks": lambda at: [made(at / "run")],
    "one task": lambda at: [made(at / "run", ["only"], [[0.5]])],
    "long names": lambda at: [
        made(at / "run", [f"a-task-with-a-very-long-name_{i}" for i in range(12)], [[i / 12] * 12 for i in range(12)])
    ],
    "nothing known": lambda at: [made(at / "run", matrix=[[None] * 3] * 3, blocks=False, sites=0, terms=())],
    "undone to the start": lambda at: [made(at / "run", matrix=(), blocks=False, terms=())],
    "one row learnt": lambda at: [made(at / "run", matrix=[[0.9, None, None]])],
    "at once": lambda at: [made(at / "run", matrix=[[None] * 3, [None] * 3, [0.9, 0.8, 0.7]], blocks=False)],
    "before learning": lambda at: [made(at / "run", zero_shot=[0.1, 0.2, 0.3])],
    "folded away": lambda at: [made(at / "run", blocks=False)],
    "not accuracies": lambda at: [made(at / "run", matrix=[[3.5, None, None], [4.0, -1.0, None], [9.0, 2.0, 1.0]])],
    "markup for names": lambda at: [made(at / "run", [MARKUP, "b", "c"], method="mora")],
    "compared": lambda at: [compared(at)],
    "two streams": lambda at: [compared(at / "x"), made(at / "y" / "run", ["only"], [[0.5]])],
}


@pytest.fixture(params=CASES)
def page(request, tmp_path) -> Page:
    return written(*CASES[request.param](tmp_path), out=tmp_path / "page.html")


def test_it_needs_nothing_but_itself(page):
    tags = {name for name, _ in page.elements}
    assert not tags & {"script", "link", "img", "iframe", "object", "embed", "form", "base", "audio", "video"}
    for name, about in page.elements:
        assert not {"src", "srcset", "data", "action", "background", "xlink:href"} & about.keys(), (name, about)
        assert not [key for key in about if key.startswith("on")], (name, about)
        assert about.get("href", "#")[0] == "#"
    (policy,) = [about for about in page.all("meta") if "http-equiv" in about]
    assert policy["content"] == POLICY and POLICY.startswith("default-src 'none'")


def test_it_can_be_found_one_s_way_in(page):
    ids = [about["id"] for _, about in page.elements if "id" in about]
    assert len(ids) == len(set(ids))
    for _, about in page.elements:
        assert about.get("href", "#main")[1:] in ids
        assert about.get("aria-labelledby", "main") in ids
    levels = [level for level, _ in page.headings]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(below - above <= 1 for above, below in zip(levels, levels[1:], strict=False))
    assert all(text.strip() for _, text in page.headings)
    assert [len(page.all(landmark)) for landmark in ("header", "nav", "main", "footer")] == [1] * 4
    assert page.all("html") == [{"lang": "en"}]
    assert page.all("a")[0] == {"href": "#main", "class": "skip"}
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in page.all("meta")


def test_what_is_drawn_is_also_said(page):
    for about in page.all("svg"):
        assert about["role"] == "img" and len(about["aria-label"] or "") > 10, about
    for table in page.tables:
        assert table.caption and table.bare == 0, table.caption
        assert table.columns and all(len(row) == len(table.columns) for row in table.rows.values()), table
    boxes = [about for about in page.all("div") if about.get("class") == "scroll"]
    assert len(boxes) == len(page.tables), "what can be too wide scrolls in its own box"
    assert all(box["tabindex"] == "0" and box["role"] == "region" and box["aria-label"] for box in boxes)


def test_markup_in_a_name_stays_text(tmp_path):
    page = written(made(tmp_path / "run", [MARKUP, "b", "c"]))
    assert page.table("accuracy on each task (columns) after").columns == [MARKUP, "b", "c"]


def test_the_matrix_is_that_of_the_results(tmp_path):
    page = written(made(tmp_path / "run", zero_shot=[None, 0.25, 0.5]))
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    table = page.table("accuracy on each task (columns) after learning each (rows)")
    assert table.columns == results["tasks"]
    rows = dict(zip(["nothing", *results["tasks"]], [results["zero_shot"], *results["matrix"]], strict=True))
    assert table.rows == {name: ["–" if v is None else f"{v:.3f}" for v in row] for name, row in rows.items()}


def test_averages_and_ends_follow_from_the_matrix(tmp_path):
    page = written(made(tmp_path / "run"))
    matrix = json.loads((tmp_path / "run" / "results.json").read_text())["matrix"]
    means = [sum(row[: t + 1]) / (t + 1) for t, row in enumerate(matrix)]
    found = page.table("mean accuracy on the tasks learnt so far").rows
    assert list(found.values()) == [[f"{value:.3f}"] for value in means]
    found = page.table("accuracy on each task as tasks are learnt").rows
    assert list(found.values()) == [[f"{matrix[j][j]:.3f}", f"{matrix[-1][j]:.3f}"] for j in range(3)]


def test_the_headline_is_that_of_the_results(tmp_path):
    page = written(made(tmp_path / "run"))
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    for key in ("final_average", "forgetting_first_minus_last", "learning_accuracy", "backward_transfer"):
        assert f"{results[key]:.3f}" in page.words and key in page.words
    for text in ("1,234", "5,678", "1 min 1 s", "512 MiB"):
        assert text in page.words


def test_losses_are_those_of_the_events(tmp_path):
    page = written(made(tmp_path / "run", terms=("classify", "replay")))
    events = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    last = [event["losses"]["replay"] for event in events if event["event"] == "step" and event["task"] == "third"]
    table = page.table("Losses within each task")
    assert table.rows["replay"] == ["third", "60", f"{last[0]:.4g}", f"{last[-1]:.4g}"]
    (label,) = [about["aria-label"] for about in page.all("svg") if "loss over steps" in str(about["aria-label"])]
    assert "classify: 0.100 to 0.150" in str(label) and "replay: 1.100 to 1.150" in str(label)


def traces(page: Page) -> list[str]:
    """The lines of the chart of losses; its legend has none, as one loss was logged."""
    start = next(i for i, (_, about) in enumerate(page.elements) if "loss over steps" in str(about.get("aria-label")))
    inside = [about for name, about in page.elements[start:] if name == "path"]
    return [str(about["d"]) for about in inside if about["class"] == "line s0"]


def test_a_line_of_losses_breaks_where_a_task_ends(tmp_path):
    (line,) = traces(written(made(tmp_path / "run")))
    assert (line.count("M"), line.count("L")) == (3, 3)  # two points in each of three tasks


def test_one_loss_a_task_is_a_point_and_no_line(tmp_path):
    run = made(tmp_path / "run")
    lines = (run / "events.jsonl").read_text().splitlines()
    (run / "events.jsonl").write_text("".join(f"{line}\n" for line in lines if '"step": 10' not in line))
    page = written(run)
    (line,) = traces(page)
    assert (line.count("M"), line.count("L")) == (3, 0)
    assert sum("point s0" in str(about.get("class")) for _, about in page.elements) >= 3


def test_what_is_not_set_is_left_out_of_the_tables_of_a_setting(tmp_path):
    toml = '[stream]\nname = "x"\n[[stream.tasks]]\nname = "a"\ntrain = "a.csv"\n'
    settings = written(made(tmp_path / "run", toml=toml)).table("Every setting of the run").rows
    assert settings["stream.tasks"] == ['[{"name": "a", "train": "a.csv"}]']


def test_test_rows_that_were_learnt_are_told(tmp_path):
    runs = [made(tmp_path / "a"), made(tmp_path / "b", method="lora")]
    told = "Test rows that are training rows, too, which flatters the scores: 4 of 10 of 'second'."
    for run in runs:
        assert told not in written(run).words
        found = json.loads((run / "environment.json").read_text())
        found["stream"]["overlap"] = {"first": 0, "second": 4, "third": 0}
        (run / "environment.json").write_text(json.dumps(found))
        assert written(run).words.count(told) == 1
    assert written(*runs).words.count(told) == 1


def test_ranks_and_gates_are_those_of_the_files(tmp_path):
    page = written(made(tmp_path / "run"))
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    adapter = json.loads((tmp_path / "run" / "adapter" / "adapter.json").read_text())
    ranks = page.table("Ranks of each site")
    assert ranks.columns == [*results["tasks"], "all"]
    assert ranks.rows == {site["name"]: ["8", "8", "8", "24"] for site in adapter["sites"]}
    by_site, by_task = (page.table(f"Share of the mixture weight, by {what}").rows for what in ("site", "task"))
    for rows, kept in (
        (by_site, results["diagnostics_by_site"]),
        (by_task, dict(zip(results["tasks"], results["diagnostics"][-1], strict=True))),
    ):
        assert rows == {name: [f"{v:.3f}" for v in cell["block_share"]] for name, cell in kept.items()}
    assert page.table("Activity of gates, by site").rows["layers.0.attention.q_proj"] == ["2.500", "1.000"]


def test_configuration_environment_and_provenance_are_whole(tmp_path):
    run = made(tmp_path / "run", toml="[train]\nlr = 0.125\n")
    page = written(run)
    assert page.table("Every setting").rows["train.lr"] == ["0.125"]
    assert page.table("Machine and versions").rows["torch"] == ["2.13.0"]
    assert page.table("Base, stream and time").rows["base fingerprint"] == [SHA]
    files = page.table("SHA-256 of each file").rows
    for name in ("config.toml", "events.jsonl", "results.json", "environment.json", "adapter/adapter.json"):
        assert files[name] == [hashlib.sha256((run / name).read_bytes()).hexdigest()], name
    assert page.table("Sources of rows").rows["birds.parquet"][0] == "300"


def test_several_runs_are_compared_as_compare_does(tmp_path):
    page = written(compared(tmp_path))
    means = page.table("birds (3 tasks) on embedded:vit").rows
    mora = json.loads((tmp_path / "mora-0" / "results.json").read_text())
    assert means["mora"][1].startswith(f"{mora['final_average']:.3f}")
    points = page.table("Means over seeds").rows
    assert points["mora"] == [f"{mora['learning_accuracy']:.3f}", f"{mora['forgetting_first_minus_last']:.3f}"]
    assert page.table("Settings that differ").rows["method"] == ["lora", "mora"]
    assert len([text for level, text in page.headings if level == 3 and text.endswith(("seed 0", "seed 1"))]) == 4
    assert page.table("What each run was made from").rows["mora"][0] == "1"  # of rows with one name, the last


def test_losses_of_several_runs_keep_their_own_tasks(tmp_path):
    """Also where the first run made no step, and another learnt all tasks at once."""
    made(tmp_path / "a-frozen", method="linear-probe", terms=(), blocks=False)
    (tmp_path / "a-frozen" / "events.jsonl").write_text("")
    made(tmp_path / "b-mora", terms=("classify", "replay"))
    page = written(tmp_path)
    assert page.table("Losses within each task").rows == {"mora": ["third", "60", "1.6", "1.3"]}


def test_colours_and_dashes_stay_with_a_run(tmp_path):
    """In every chart: a row that one of them leaves out does not move the others' colours."""
    made(tmp_path / "a-joint", matrix=[[None] * 3, [None] * 3, [0.9, 0.8, 0.7]], method="joint", blocks=False)
    made(tmp_path / "b-mora")
    path, _ = report([tmp_path])
    charts = [text.partition("</svg>")[0] for text in path.read_text().split("<svg ")[1:]]
    (scatter,) = [chart for chart in charts if "Forgetting against" in chart]
    assert 'class="point s1"' in scatter and 'class="point s0"' not in scatter


def test_the_largest_page_is_small_enough(tmp_path):
    tasks = [f"task-{i}" for i in range(120)]
    run = made(tmp_path / "run", tasks, [[0.123456] * 120] * 120, sites=300)
    path, _ = report([run])
    assert path.stat().st_size <= LIMIT
    page = Page.of(path)
    table = page.table("accuracy on each task (columns) after learning each (rows)")
    assert "100 of 120 columns are shown, evenly spaced" in table.caption
    assert table.columns[0] == "task-0" and table.columns[-1] == "task-119" and len(table.rows) == 100


def test_a_page_of_many_large_runs_is_small_enough(tmp_path):
    tasks = [f"task-{i}" for i in range(60)]
    for seed in range(12):
        made(tmp_path / f"{seed}", tasks, [[0.123456] * 60] * 60, sites=100, seed=seed)
    path, _ = report([tmp_path])
    assert path.stat().st_size <= LIMIT
    assert "no room is left on this page" in Page.of(path).words


def test_where_it_goes(tmp_path):
    run, other = made(tmp_path / "runs" / "a"), made(tmp_path / "runs" / "b", seed=1)
    assert report([run])[0] == run / "report.html"
    assert report([tmp_path / "runs"])[0] == tmp_path / "runs" / "report.html"
    assert report([run, other])[0] == tmp_path / "runs" / "report.html"
    assert rankwise.report(str(run))[0] == run / "report.html" == rankwise.report([str(run)])[0]
    assert len(rankwise.compare(str(tmp_path / "runs"))["tables"][0]["rows"][0]["seeds"]) == 2


def test_what_cannot_be_shown_is_named(tmp_path):
    run = made(tmp_path / "runs" / "a")
    (tmp_path / "runs" / "open").mkdir()
    (tmp_path / "runs" / "open" / "config.toml").write_text('method = "lora"\n')
    made(tmp_path / "runs" / "c", seed=1)
    path, notes = report([tmp_path / "runs"])
    assert len(notes) == 1 and "is not finished" in notes[0] and notes[0].replace("`", "") in Page.of(path).words
    (run / "results.json").unlink()
    with pytest.raises(DataError, match="is not finished"):
        report([run])
    with pytest.raises(UsageError, match="no such folder"):
        report([tmp_path / "runs" / "q"])


class Told(Watch):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)


def test_a_page_that_cannot_be_written_loses_nothing(tmp_path, monkeypatch):
    run, told = made(tmp_path / "run"), Told()
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    (run / "report.html").mkdir()
    assert left_behind(run, told) is None
    assert "no report was written" in told.lines[0] and "the run is complete" in told.lines[0]
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    (run / "report.html").rmdir()
    (run / "results.json").write_text((run / "results.json").read_text().replace('"tasks": ["first"', '"tasks": [1'))
    assert left_behind(run, told) is None and "TypeError" in told.lines.pop(), "nor one whose numbers make no figure"
    monkeypatch.setenv("RANK", "1")
    assert left_behind(run, told) is None and len(told.lines) == 1, "only the first process writes"


def test_a_page_depends_on_its_files_alone(tmp_path):
    run = made(tmp_path / "run")
    first = report([run])[0].read_bytes()
    os.utime(run / "results.json", (1, 1))
    assert report([run])[0].read_bytes() == first


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    r, g, b = (p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


@pytest.mark.parametrize("scheme", [0, 1])
def test_contrast(scheme):
    """WCAG 2: 4.5 for text, also on the darkest and the lightest cell; 3 for what is drawn."""
    colour = {name: luminance(pair[scheme]) for name, pair in COLOURS.items()}

    def ratio(a: str, b: str) -> float:
        high, low = max(colour[a], colour[b]), min(colour[a], colour[b])
        return (high + 0.05) / (low + 0.05)

    for text, ground in (("ink", "paper"), ("muted", "paper"), ("ink", "heat"), ("ink", "cell"), ("s0", "paper")):
        assert ratio(text, ground) >= 4.5, (text, ground)
    for name in COLOURS:
        if name[0] == "s":
            assert ratio(name, "paper") >= 4.5, name
