"""The base as it is: only the head's rows learn.

    scores = C f(x);    C learns, the features f of the base stay as they are

| symbol | shape | meaning |
|---|---|---|
| f(x) | [features] | pooled features of the base |
| C | [classes, features] | the head's rows |
"""

from __future__ import annotations

from rankwise.learning.recipe import Method

METHOD = Method(
    slug="linear-probe",
    title="Frozen base with a trained head",
    paper="frozen-backbone baseline of arXiv 2302.00487",
    axis="live",
    live="head",
    parameters="features a class; one more with head = linear",
    mergeable=False,
    peft=None,
    refuses=(
        "merge: the base is as it was; its head is saved beside it",
        "adapter.growth: it has no adapter, so what else [adapter] says does nothing",
    ),
    defaults={"objective": {"predict": "head"}},
)
