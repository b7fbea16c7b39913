"""The pages name what is there: targets of the Makefile, files, commands."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from fresh import python
from reading import ROOT


def pages() -> list[Path]:
    return sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def code_lines(page: Path) -> Iterator[str]:
    """The lines of a page that a reader would type: in a code block, or between backticks."""
    text = page.read_text(encoding="utf-8")
    for block in re.findall(r"^```.*?^```", text, flags=re.MULTILINE | re.DOTALL):
        yield from block.splitlines()[1:-1]
    yield from re.findall(r"^ {4}(\S.*)$", text, flags=re.MULTILINE)
    yield from re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))


def test_pages_name_targets_that_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    for page in pages():
        named = {match for line in code_lines(page) for match in re.findall(r"\bmake ([a-z][a-z-]*)", line)}
        assert named <= targets, f"{page.name} names no target of the Makefile: {sorted(named - targets)}"


def test_pages_link_to_files_that_exist() -> None:
    for page in pages():
        links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8"))
        inside = [link for link in links if "://" not in link and not link.startswith("mailto:")]
        missing = [link for link in inside if not (page.parent / link).exists()]
        assert not missing, f"{page.relative_to(ROOT)} links to files that do not exist: {missing}"


def test_pages_name_commands_that_exist() -> None:
    shown = {line for page in pages() for line in code_lines(page)}
    verbs = {match for line in shown for match in re.findall(r"(?:^|(?<!from)[\s/])rankwise ([a-z]+)(?=\s|$)", line)}
    unknown = [verb for verb in sorted(verbs) if python("-m", "rankwise", verb, "--help").returncode != 0]
    assert not unknown, f"a page names commands that do not exist: {unknown}"
