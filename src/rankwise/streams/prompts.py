"""Rows of prompt and answer, for models that write: what `[stream] kind = "instruction"` makes of labelled texts."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

from rankwise.errors import DataError, nearest
from rankwise.streams.rows import Rows
from rankwise.streams.scenarios import Domain

LABELS = 64
"""Answers are classes up to so many different ones, each met ROWS times on average, and if the test has no other;
beyond, a task's texts are one class."""
ROWS = 4
OPTIONS = "options"
PLACE = re.compile(r"\{(\w+)\}")


def instruction(domain: Domain, template: str | None, columns: Sequence[str]) -> Domain:
    """Make a task's inputs pairs (prompt, answer).

    Args:
        domain: rows of texts (or pairs of texts) with the answer as label.
        template: the prompt, with {column} for the text of an input column and {options} for the task's answers, by
            comma; None: the texts themselves, one a line.
        columns: names of the input columns.

    Raises:
        DataError: inputs that are no texts; a template that leaves out an input column, or names what is not there.

    """
    answers = _options(domain)
    template = "\n".join(f"{{{name}}}" for name in columns) if template is None else template
    _check(template, columns, answers, domain)
    train, test = (_asked(rows, template, columns, answers) for rows in (domain.train, domain.test))
    if not answers:
        train, test = (dataclasses.replace(r, labels=[0] * len(r), class_names=(domain.name,)) for r in (train, test))
    return domain._replace(train=train, test=test)


def _options(domain: Domain) -> tuple[str, ...]:
    """Return the task's answers where they are few and known from training; () where they are texts of their own."""
    taught, tested = set(domain.train.named()), set(domain.test.named())
    known = are_labels(domain.train) and tested <= taught
    return tuple(name for name in domain.train.names() if name in taught) if known else ()


def are_labels(rows: Rows) -> bool:
    """Say whether the answers of `rows` are few enough to be labels."""
    return len(set(rows.named())) <= min(LABELS, len(rows) // ROWS)


def _check(template: str, columns: Sequence[str], answers: Sequence[str], domain: Domain) -> None:
    where = f"task '{domain.name}': prompt {template!r}"
    if domain.train.modality != "text":
        raise DataError(f"task '{domain.name}': kind = \"instruction\" needs texts, {domain.train.where} holds images")
    named = PLACE.findall(template)
    for column in columns:
        if column not in named:
            raise DataError(f"{where} leaves out the input; put {{{column}}} where its text belongs")
    for name in named:
        if name not in (*columns, OPTIONS):
            raise DataError(f"{where}: {{{name}}} is no input column; {nearest(name, [*columns, OPTIONS])}")
    if OPTIONS in named and not answers:
        raise DataError(f"{where}: {{options}}, but its answers are no small set of labels; write them out or drop it")


def _asked(rows: Rows, template: str, columns: Sequence[str], answers: Sequence[str]) -> Rows:
    """Fill the template for each row; braces in a row's own text stay as they are."""
    fixed = {OPTIONS: ", ".join(answers)}
    pairs = []
    for row, answer in zip(rows.inputs, rows.named(), strict=True):
        texts = dict(zip(columns, row if isinstance(row, tuple) else (row,), strict=True))
        values = {**fixed, **texts}
        pairs.append((PLACE.sub(lambda place, values=values: values[place[1]], template), answer))
    return dataclasses.replace(rows, inputs=pairs)
