"""The documentation: the site builds without a warning, every link leads somewhere, every snippet runs as it stands."""

from __future__ import annotations

import contextlib
import doctest
import importlib
import importlib.util
import io
import os
import re
import shlex
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote
from xml.etree import ElementTree

import pytest

from rankwise.api import resolve
from rankwise.cli import app, main

ROOT = Path(__file__).parents[1]
FOLLOWED = ("docs/getting-started.md", "docs/concepts.md", "docs/files.md", "docs/peft.md")
"""Pages whose files are written and whose commands and scripts are run, in order, each page in a folder of its own."""
FOLLOWED_SLOWLY = ("README.md", "docs/commands.md", "docs/data.md")
ELSEWHERE = ("docs/add-a-method.md",)
"""Followed by test_tutorial.py."""
RUN = {"python", "console", "toml", "csv"}
SHOWN = {"text"}
"""Languages of blocks that run (or are read) and of those that only show something."""


# Pages, as what a reader would type.


@dataclass(frozen=True)
class Block:
    """A fenced block of a page: its language, the file it is (or none), its text."""

    language: str
    file: str
    text: str


def blocks(page: Path) -> list[Block]:
    found = re.findall(
        r'^```(\w+)(?: title="([\w.-]+)")?\n(.*?)^```$', page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    return [Block(*block) for block in found]


def pages() -> list[Path]:
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def commands(block: Block) -> list[tuple[list[str], list[str]]]:
    """Each command of a console block as its words, with the lines of output shown below it."""
    found: list[tuple[list[str], list[str]]] = []
    for line in block.text.splitlines():
        if line.startswith("$ "):
            found.append((shlex.split(line[2:], comments=True), []))
        else:
            found[-1][1].append(line)
    return found


def typed(page: Path) -> list[list[str]]:
    """The words of every `rankwise` command on a page, in a block of either kind."""
    text = page.read_text(encoding="utf-8")
    lines = re.findall(r"^(?:\$|   ) (rankwise .*)$", text, flags=re.MULTILINE)
    return [shlex.split(re.split(r"\s+(?:>|#)", line)[0])[1:] for line in lines]


NUMBER = r"-?\d+(?:\.\d+)?"


def alike(shown: str, printed: str) -> bool:
    """The same words, and numbers that differ by no more than another machine's rounding and clock make them."""
    if re.sub(NUMBER, "#", shown).split() != re.sub(NUMBER, "#", printed).split():
        return False
    pairs = zip(re.findall(NUMBER, shown), re.findall(NUMBER, printed), strict=True)
    return all(abs(float(a) - float(b)) <= 0.15 for a, b in pairs if "." in a)


def check_output(words: list[str], shown: list[str], printed: str) -> None:
    """Each line shown was printed, in that order, with nothing between but where `...` stands."""
    lines, place, free = printed.splitlines(), 0, False
    for line in shown:
        if line.strip() == "...":
            free = True
            continue
        while free and place < len(lines) and not alike(line, lines[place]):
            place += 1
        assert place < len(lines) and alike(line, lines[place]), f"{words}: {line!r} is not in\n{printed}"
        place, free = place + 1, False


def follow(page: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """Write the page's files into `folder`, run its commands and scripts there; return how many were run."""
    monkeypatch.chdir(folder)
    names: dict[str, object] = {"__name__": "__main__"}
    ran = 0
    for block in blocks(page):
        if block.file:
            (folder / block.file).write_text(block.text, encoding="utf-8")
        elif block.language == "python":
            exec(compile(block.text, str(page), "exec"), names)
            ran += 1
        elif block.language == "console":
            for words, shown in commands(block):
                assert words[0] == "rankwise", f"{page.name}: {words[0]} is not run here"
                with contextlib.redirect_stdout(io.StringIO()) as out:
                    assert main(words[1:]) == 0, words
                check_output(words, shown, out.getvalue())
                ran += 1
    return ran


@pytest.mark.parametrize("name", FOLLOWED)
def test_a_page_runs_as_it_stands(name, tmp_path, monkeypatch):
    assert follow(ROOT / name, tmp_path, monkeypatch) > 0


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", FOLLOWED_SLOWLY)
def test_a_long_page_runs_as_it_stands(name, tmp_path, monkeypatch):
    prepare(tmp_path)
    assert follow(ROOT / name, tmp_path, monkeypatch) > 0


def prepare(folder: Path) -> None:
    """The files that pages speak of as the reader's own."""
    kinds = {"2024": ("where is my parcel", "my invoice is wrong"), "2025": ("the app closes", "delete my account")}
    for year, texts in kinds.items():
        for name, count in ((f"mail-{year}.csv", 10), (f"mail-{year}-test.csv", 4)):
            rows = [f"{text} number {i},{text.split()[-1]}" for text in texts for i in range(count)]
            (folder / name).write_text("\n".join(["text,label", *rows]) + "\n")
    lines = ["[stream]", 'name = "digits"', "classes_per_task = 5", "train_limit = 20", "test_limit = 10"]
    (folder / "my.toml").write_text("\n".join([*lines, "[train]", "steps = 2"]) + "\n")


def test_no_snippet_is_left_out():
    run_somewhere = {ROOT / name for name in (*FOLLOWED, *FOLLOWED_SLOWLY, *ELSEWHERE)}
    for page in pages():
        kinds = {block.language for block in blocks(page)}
        assert kinds <= RUN | SHOWN, f"{page.name}: nothing says how blocks of {sorted(kinds - RUN - SHOWN)} are tested"
        assert page in run_somewhere or not kinds & {"python", "console"}, f"{page.name}: nobody runs its snippets"


def test_every_config_shown_is_one():
    for page in pages():
        for block in blocks(page):
            if (
                block.language == "toml"
                and block.file != "pyproject.toml"
                and page not in map(ROOT.joinpath, ELSEWHERE)
            ):
                resolve(tomllib.loads(block.text))


def test_every_command_shown_can_be_given():
    shown = [(page, words) for page in pages() for words in typed(page)]
    assert len(shown) > 20
    for page, words in shown:
        if words[0] != "--import":
            app.parse_args(words, exit_on_error=False, print_error=False)
        assert page.is_file()


def test_every_script_shown_has_its_options():
    for page in pages():
        for line in re.findall(r"^    python (\S+\.py.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE):
            script, *words = shlex.split(line, comments=True)
            source = (ROOT / script).read_text(encoding="utf-8")
            missing = [word for word in words if word.startswith("--") and f'"{word}"' not in source]
            assert not missing, f"{page.name}: {script} has no {missing}"


EXAMPLE = re.compile(r"^\s*>>> ", flags=re.MULTILINE)


def modules_with_examples() -> list[str]:
    files = sorted((ROOT / "src" / "rankwise").rglob("*.py"))
    named = [file.relative_to(ROOT / "src").with_suffix("") for file in files if EXAMPLE.search(file.read_text())]
    return [".".join(name.parts).removesuffix(".__init__") for name in named]


@pytest.mark.parametrize("name", modules_with_examples())
def test_the_examples_of_a_module_run(name):
    failed, tried = doctest.testmod(importlib.import_module(name))
    assert tried and not failed


@pytest.mark.parametrize("name", ["text.py", "commands.py"])
def test_the_examples_of_the_generator_run(name):
    words = [sys.executable, "-m", "doctest", name]
    path = str(ROOT / "src")
    done = subprocess.run(
        words, cwd=ROOT / "scripts" / "docs", env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


# The site.


class Links(HTMLParser):
    """What a page of the site points at, what it loads, and the places in it that can be pointed at."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.loaded: list[str] = []
        self.places: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {key: value or "" for key, value in attrs}
        self.places |= {given[key] for key in ("id", "name") if key in given}
        if tag == "a" and "href" in given:
            self.targets.append(given["href"])
        if tag == "link" and given.get("rel") in ("stylesheet", "icon", "preload"):
            self.loaded.append(given["href"])
        if "src" in given:
            self.loaded.append(given["src"])


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The site, built strictly (a warning is a failure) into a folder of its own."""
    if importlib.util.find_spec("zensical") is None:
        pytest.skip("zensical (extra `dev`) is not installed")
    folder = tmp_path_factory.mktemp("docs")
    path = os.pathsep.join([str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])])
    build = ["-m", "zensical", "build", "--strict", "-f", str(folder / "mkdocs.yml")]
    for words in ([str(ROOT / "scripts" / "docs"), str(folder)], build):
        done = subprocess.run(
            [sys.executable, *words],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": path, "NO_COLOR": "1"},
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode == 0, f"{words}\n{done.stdout}{done.stderr}"
    return folder


@pytest.fixture(scope="module")
def html(site) -> dict[Path, Links]:
    files = sorted((site / "site").rglob("*.html"))
    return {file: Links(file.read_text(encoding="utf-8")) for file in files}


def own() -> list[str]:
    folder = ROOT / "src" / "rankwise" / "papers"
    files = [*folder.glob("[!_]*.py"), *(path.parent for path in folder.glob("[!_]*/__init__.py"))]
    return sorted(path.stem.replace("_", "-") for path in files)


def test_every_method_and_command_has_a_page(site):
    made = {path.relative_to(site / "pages").with_suffix("").as_posix() for path in (site / "pages").rglob("*.md")}
    assert {f"methods/{slug}" for slug in own()} <= made and len(own()) >= 38
    assert {f"commands/{name}" for name in app if not name.startswith("-")} <= made


@pytest.mark.parametrize("slug", own())
def test_a_method_page_says_what_it_must(site, slug):
    page = (site / "pages" / "methods" / f"{slug}.md").read_text(encoding="utf-8")
    rule = page.partition("## Update rule")[2].partition("## Use it")[0]
    formulas = "\n".join(re.findall(r"^```text\n(.*?)^```$", rule, flags=re.MULTILINE | re.DOTALL))
    assert re.search(r"=|<-", formulas), f"{slug}: no update rule in the docstrings of its file and parts"
    assert "| symbol | shape | meaning |" in rule, f"{slug}: no table of symbols"
    assert re.search(r"\| Source \| .*(arxiv\.org|arXiv|\(\w+ \d{4}\))", page), f"{slug}: no source"
    assert "## Settings" in page and "## Measured" in page and "## What it goes with" in page
    assert f'method = "{slug}"' in page


def test_every_config_of_a_method_page_is_one(site):
    for slug in own():
        (config,) = (block for block in blocks(site / "pages" / "methods" / f"{slug}.md") if block.file)
        assert resolve(tomllib.loads(config.text))[0].method == slug


@pytest.mark.slow
@pytest.mark.parametrize("slug", own())
def test_a_method_page_runs_as_it_stands(site, slug, tmp_path, monkeypatch):
    assert follow(site / "pages" / "methods" / f"{slug}.md", tmp_path, monkeypatch) == 2


def test_the_example_of_a_command_can_be_given(site):
    pages = sorted((site / "pages" / "commands").glob("*.md"))
    examples = [words for page in pages for words in typed(page)]
    assert len(examples) >= len(pages) - 1
    for words in examples:
        app.parse_args(words, exit_on_error=False, print_error=False)


def test_every_link_leads_somewhere(html):
    for file, page in html.items():
        for target in page.targets:
            where, _, place = target.partition("#")
            if "://" in where or where.startswith(("mailto:", "javascript:")) or file.name == "404.html":
                continue
            found = (file.parent / unquote(where)).resolve() if where else file
            assert found.is_file(), f"{file.name}: {target}"
            known = html[found].places if found in html else {place}
            assert not place or unquote(place) in known, f"{file.name}: no such place as {target}"


def test_nothing_is_fetched(site, html):
    for file, page in html.items():
        for target in page.loaded:
            assert "://" not in target and not target.startswith("//"), f"{file.name} loads {target}"
            inside = file.name == "404.html" or (file.parent / unquote(target.partition("?")[0])).is_file()
            assert inside, f"{file.name} loads {target}, which is not there"
    for style in (site / "site").rglob("*.css"):
        assert not re.search(r"url\(['\"]?(?:https?:)?//|@import", style.read_text(encoding="utf-8")), style.name


def test_every_page_is_in_the_navigation(site):
    listed = set(re.findall(r"([\w/.-]+\.md)$", (site / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE))
    assert listed == {path.relative_to(site / "pages").as_posix() for path in (site / "pages").rglob("*.md")}


def test_the_picture_of_the_seams_can_be_read(site):
    page = (site / "site" / "concepts.html").read_text(encoding="utf-8")
    drawing = ElementTree.parse(ROOT / "docs" / "pictures" / "seams.svg")
    assert drawing.getroot().tag.endswith("svg")
    svg = page[page.index('<svg class="seams"') :].partition("</svg>")[0]
    assert 'role="img"' in svg and "<title" in svg and "<desc" in svg
    assert "prefers-color-scheme: dark" in svg and 'data-md-color-scheme="slate"' in svg
    for seam in ("gate", "form", "init", "dynamics", "growth"):
        assert f"adapter.{seam}" in svg


def test_what_a_run_leaves_is_described(tmp_path):
    import rankwise

    stream = {"name": "digits", "classes_per_task": 5, "train_limit": 20, "test_limit": 10}
    run = rankwise.run({"method": "lora", "stream": stream, "train": {"steps": 2}}, out=tmp_path / "run")
    page = (ROOT / "docs" / "files.md").read_text(encoding="utf-8")
    table = page.partition("## results.json")[2].partition("## ")[0]
    described = {
        key for line in re.findall(r"^\| (`.*?`) \|", table, re.MULTILINE) for key in re.findall(r"`(\w+)`", line)
    }
    assert described == run.results.keys()
    for file in (file for file in run.path.rglob("*") if file.is_file() and "checkpoints" not in file.parts):
        assert f"`{file.name}`" in page, f"docs/files.md does not describe {file.name}"
