"""Write the pages of the documentation and their site's config: `python scripts/docs [FOLDER]`, default build/docs.

The pages of docs/ are copied; those of methods, commands, config, strategies and the Python interface are made from
docstrings and records, so nothing is written twice. In every page the name of a method or a command, set as code,
becomes a link to its page. `make docs` then builds FOLDER/site with zensical.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

import commands
import measured
import methods
import reference
from text import table

from rankwise import papers

ROOT = Path(__file__).resolve().parents[2]
SOURCES = {"CLAIMS.md": "claims.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
"""Pages beside the docs folder, and what they are called in the site."""
MADE = {
    "*Methods*": "methods/index.md",
    "*Config*": "config.md",
    "*Strategies*": "strategies.md",
    "*Python*": "python.md",
}
"""How a page of docs/ names a page that is made here, so that it has no dead link where it is read by itself."""
WIDE = {"methods/index.md", "composition.md", "models.md", "claims.md"}
"""Pages whose tables need the room beside them."""
TABLES: dict[str, Callable[[], str]] = {
    "text4": lambda: table(measured.HEAD, measured.text_rows()),
    "digits": lambda: table(measured.HEAD, measured.digit_rows()),
    "variants": lambda: table(measured.HEAD, measured.variant_rows()),
    "claims": lambda: measured.claim_table(measured.claims(), "claims.md"),
}
"""What takes the place of `<!-- table: NAME -->` in a page."""


def pages() -> Iterator[tuple[str, str]]:
    """Yield every page: its path in the site, its Markdown."""
    for path in sorted((ROOT / "docs").rglob("*.md")):
        yield path.relative_to(ROOT / "docs").as_posix(), path.read_text(encoding="utf-8")
    for name, page in SOURCES.items():
        yield page, (ROOT / name).read_text(encoding="utf-8")
    yield "methods/index.md", methods.index()
    yield from ((f"methods/{slug}.md", methods.page(slug)) for slug in own_methods())
    yield from ((f"commands/{name}.md", commands.page(name)) for name in commands.names())
    yield "config.md", reference.config_page()
    yield "strategies.md", reference.strategies_page()
    yield "python.md", reference.python_page()


def own_methods() -> list[str]:
    """Return the methods of this package, without plug-ins that happen to be installed."""
    folder = Path(papers.__file__).parent
    stems = {slug: folder / slug.replace("-", "_") for slug in papers.slugs()}
    return [slug for slug, stem in stems.items() if stem.is_dir() or stem.with_suffix(".py").is_file()]


def finished(path: str, text: str) -> str:
    """Return a page as it goes into the site: tables filled in, pictures drawn in, names linked, links put right."""
    text = re.sub(r"^<!-- table: (\w+) -->$", lambda found: TABLES[found[1]](), text, flags=re.MULTILINE)
    text = re.sub(r"^!\[[^]]*\]\((pictures/\w+\.svg)\)$", lambda found: drawing(found[1]), text, flags=re.MULTILINE)
    for name, page in SOURCES.items():
        text = text.replace(f"(../{name}", f"({page}")
    text = text.replace("(docs/", "(") if path in SOURCES.values() else text
    return ("---\nhide:\n  - toc\n---\n\n" if path in WIDE else "") + linked(text, path)


def drawing(name: str) -> str:
    """Return a picture as part of the page, so that it follows the page's light and dark."""
    svg = (ROOT / "docs" / name).read_text(encoding="utf-8")
    return '<figure tabindex="0">\n' + re.sub(r"\n\s*\n", "\n", svg[svg.index("<svg") :]).strip() + "\n</figure>"


def linked(text: str, path: str) -> str:
    """Link the names of methods and commands that are set as code, outside headings, links and blocks of code."""
    up = "../" * (len(PurePosixPath(path).parts) - 1)
    for name, page in MADE.items():
        text = text.replace(name, f"[{name.strip('*')}]({up}{page})")
    targets = {slug: f"methods/{slug}.md" for slug in own_methods()}
    targets |= {f"rankwise {name}": f"commands/{name}.md" for name in commands.names()}

    def link(found: re.Match[str]) -> str:
        target = targets.get(found[1]) or targets.get(" ".join(found[1].split()[:2]))
        return found[0] if target in (None, path) else f"[{found[0]}]({up}{target})"

    lines, fenced = [], False
    for line in text.split("\n"):
        fenced ^= line.startswith("```")
        skipped = fenced or line.startswith(("#", "    ", "```", "<"))
        lines.append(line if skipped else re.sub(r"(?<![\[`])`([a-z][a-zA-Z0-9 .\[\]-]*)`(?![\]`])", link, line))
    return "\n".join(lines)


def site_config() -> str:
    """Return mkdocs.yml with the pages of methods and commands, and those it does not list, in its navigation."""
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    listed = set(re.findall(r"(\S+\.md)$", text, flags=re.MULTILINE))
    found = {
        "others": sorted(path.name for path in (ROOT / "docs").glob("*.md") if path.name not in listed),
        "methods": [f"{slug}: methods/{slug}.md" for slug in own_methods()],
        "commands": [f"{name}: commands/{name}.md" for name in commands.names()],
    }
    for name, entries in found.items():
        lines = "\n".join(f"      - {entry}" for entry in entries)
        text = re.sub(rf"^ *# {name}$", lines, text, flags=re.MULTILINE)
    return text


def main(folder: Path) -> None:
    """Write everything to `folder`, which is emptied first."""
    shutil.rmtree(folder / "pages", ignore_errors=True)
    for path, text in pages():
        target = folder / "pages" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(finished(path, text).rstrip() + "\n", encoding="utf-8")
    for name in ("pictures", "assets"):
        if (ROOT / "docs" / name).is_dir():
            shutil.copytree(ROOT / "docs" / name, folder / "pages" / name)
    (folder / "mkdocs.yml").write_text(site_config(), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "build" / "docs"))
