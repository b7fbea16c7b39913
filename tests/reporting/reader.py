"""A page as a program reads it: elements, headings, tables by their captions."""

from __future__ import annotations

from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

VOID = {"meta", "wbr", "br", "link", "img", "input"}


@dataclass
class Table:
    """The text of a table."""

    caption: str = ""
    columns: list[str] = field(default_factory=list)
    rows: dict[str, list[str]] = field(default_factory=dict)
    bare: int = 0
    """Headers without a scope."""


class Page(HTMLParser):
    """What a page holds."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.headings: list[tuple[int, str]] = []
        self.tables: list[Table] = []
        self.words = ""
        self._row: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, f"left open: {self.open}"

    @classmethod
    def of(cls, path: Path) -> Page:
        return cls(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        about = dict(attrs)
        self.elements.append((tag, about))
        if tag not in VOID:
            self.open.append(tag)
        if tag in ("h1", "h2", "h3", "h4", "h5", "h6"):
            self.headings.append((int(tag[1]), ""))
        if tag == "table":
            self.tables.append(Table())
        if tag in ("th", "td"):
            self._row.append("")
            self.tables[-1].bare += tag == "th" and "scope" not in about
        if tag == "tr":
            self._row = []

    def handle_endtag(self, tag: str) -> None:
        if tag in VOID:
            return
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()
        if tag == "tr" and "thead" in self.open:
            self.tables[-1].columns = self._row[1:]
        elif tag == "tr":
            self.tables[-1].rows[self._row[0]] = self._row[1:]

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            return
        self.words += data
        if self.open and self.open[-1][0] == "h" and self.open[-1][1:].isdigit():
            level, text = self.headings[-1]
            self.headings[-1] = (level, text + data)
        if "caption" in self.open:
            self.tables[-1].caption += data
        if self.open and ("th" in self.open or "td" in self.open):
            self._row[-1] += data

    def table(self, caption: str) -> Table:
        """Return the only table whose caption begins so."""
        (found,) = [table for table in self.tables if table.caption.startswith(caption)]
        return found

    def all(self, tag: str) -> list[dict[str, str | None]]:
        """Return the attributes of every element of a kind."""
        return [about for name, about in self.elements if name == tag]
