"""A slip of the hand, anywhere a user can make one: exit code 2, the nearest valid choice, no torch, under a second."""

from __future__ import annotations

import inspect
import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

import pytest
from fresh import python

from rankwise.claims import slugs as claimed
from rankwise.cli import LISTS, MANY, RUNS
from rankwise.cli.parts import kinds, own, part_of, starts
from rankwise.config import ClassifySettings, Config, LanguageSettings, Section, TaskSettings
from rankwise.config.outline import attribute, outline
from rankwise.config.words import THEIRS

SECONDS = float(os.environ.get("RANKWISE_TYPO_SECONDS", "1.0"))
"""Processor time a typo may take, Python's start included; a slower machine sets its own bar."""
STREAM = {"name": "mine", "train": "rows.jsonl"}
LANGUAGE = {"stream.kind": "instruction", "objective.kind": "language"}

RUNNER = """
import contextlib, io, json, sys, time
from rankwise.cli import main
for words in json.load(sys.stdin):
    said, begun = io.StringIO(), time.process_time()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        code = main(words)
    seconds = time.process_time() - begun
    heavy = [name for name in ("torch", "transformers", "datasets", "numpy") if name in sys.modules]
    print(json.dumps([code, said.getvalue(), seconds, heavy]))
"""


class Typo(NamedTuple):
    """What is typed, and what was meant."""

    words: tuple[str, ...]
    meant: str


def slip(word: str) -> str:
    """Swap two letters in the middle, or double the last one of a short word: what a hand does."""
    for i in range(len(word) // 2, 0, -1):
        if len(word) > 3 and word[i] != word[i - 1] and word[i].isalpha() and word[i - 1].isalpha():
            return word[: i - 1] + word[i] + word[i - 1] + word[i + 1 :]
    return word + word[-1]


def toml(value: Any) -> str:
    """Write a value in one line, as `--set` takes it."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {toml(held)}" for key, held in value.items()) + "}"
    return f"[{', '.join(map(toml, value))}]" if isinstance(value, list) else json.dumps(value)


def settings(values: dict[str, Any]) -> tuple[str, ...]:
    return tuple(word for key, value in values.items() for word in ("--set", f"{key}={toml(value)}"))


def run(values: dict[str, Any], meant: str) -> Typo:
    return Typo(("run", "ok.toml", *settings(values)), meant)


def literals(annotation: Any) -> list[Any]:
    """The words that a value may be, where they can be counted."""
    if get_origin(annotation) is Literal:
        return [word for word in get_args(annotation) if isinstance(word, str)]
    return [word for part in get_args(annotation) for word in literals(part)]


def fields_of(section: type) -> dict[str, list[Any]]:
    if issubclass(section, Section):
        return {key: literals(field.annotation) for key, field in section.model_fields.items()}
    return {key: literals(kind) for key, kind in section.__annotations__.items()}


def schema() -> Iterator[Typo]:
    """Every key and every counted value of the tables that the schema knows."""
    tables = {name: type(value) for name, value in Config() if isinstance(value, Section)}
    for place, table, others in (
        ("", Config, {}),
        *((f"{name}.", table, {}) for name, table in tables.items()),
        ("objective.", ClassifySettings, {}),
        ("objective.", LanguageSettings, LANGUAGE),
    ):
        for key, words in fields_of(table).items():
            yield run({**others, f"{place}{slip(key)}": 1}, key)
            for word in words if key != "kind" else ():
                yield run({**others, f"{place}{key}": slip(word)}, word)
    for kind in ("class-incremental", "cross-domain", "instruction"):
        yield run({"stream.kind": slip(kind)}, kind)
    for kind in ("classify", "language"):
        yield run({"objective.kind": slip(kind)}, kind)
    for key in TaskSettings.model_fields:
        task = {"name": "a", "train": "rows.jsonl", slip(key): 1}
        yield run({"stream": {"name": "x", "tasks": [task]}}, key)
    yield from (run({f"{table}{word}": 1}, key) for word, key in THEIRS.items() for table in ("", "adapter."))
    yield run({"rank": 4}, "adapter.rank")
    yield run({"train.seed": 1}, "seed")
    yield run({"stream": {"name": "digist"}}, "digits")
    yield run({"train.device": "cdua"}, "cuda")
    yield run({"train.bucket": "ture"}, "true")


def parts() -> Iterator[Typo]:
    """Every key and counted value of strategies, dynamics, gates and branches, and the words for them."""
    for kind, part in kinds().items():
        found = attribute(part, "Settings")
        assert found is not None
        yield run({"strategy": [{"kind": slip(kind)}]}, kind)
        yield run({"adapter.dynamics": {"kind": slip(kind)}}, kind)
        for key, words in fields_of(outline(found)).items():
            yield run({"strategy": [{"kind": kind, slip(key): 1}]}, key)
            yield from (run({"adapter.dynamics": {"kind": kind, key: slip(word)}}, word) for word in words)
    for slug in own():
        yield run({"method": slip(slug)}, slug)
        for seam in ("gate", "form"):
            part = part_of(slug, seam)
            for key, words in fields_of(outline(part, besides="Branch")).items() if part else ():
                yield run({"method": slug, f"adapter.{seam}": {slip(key): 1}}, key)
                yield from (run({"method": slug, f"adapter.{seam}": {key: slip(word)}}, word) for word in words)
    yield from (run({"adapter.init": slip(start)}, start) for start in starts())
    yield run({"strategy": [{"knid": "ewc"}]}, "kind")


def places() -> Iterator[Typo]:
    """Files, folders, bases, sites."""
    yield Typo(("run", "oky.toml"), "ok.toml")
    yield Typo(("sweep", "ok.tmol"), "ok.toml")
    for key in ("train", "test"):
        yield run({"stream": {**STREAM, key: "rosw.jsonl"}}, "rows.jsonl")
        yield run({"stream": {"name": "x", "tasks": [{"name": "a", **STREAM, key: "rows.json"}]}}, "rows.jsonl")
        yield run({"stream": {**STREAM, key: "pictures/trian"}}, "train")
    yield run({"stream": {**STREAM, "train": "picturs"}}, "pictures")
    for base in ("embedded:vti", "embeded:vit", "embedded", "embeded", "vit", "Embedded:ViT", "vit:embedded"):
        yield run({"model.name": base}, "embedded:vit")
    for base in ("minilmm", "MiniLM", "mini-lm"):
        yield run({"model.name": base}, "minilm")
    yield run({"model.name": "./bases/tyni"}, "tiny")
    yield run({"model.name": "bases/tyni"}, "tiny")
    yield run({"adapter.sites": "all-linaer"}, "all-linear")
    yield run({"adapter.sites": ["mlp-spna"]}, "mlp-span")
    for command in ("resume", "log", "evaluate", "path", "undo", "compare"):
        yield Typo((command, "runs/frist"), "first")
    for command in ("merge", "export"):
        yield Typo((command, "runs/frist", "--out", "new"), "first")
        yield Typo((command, "runs/first/adapter", "--out", "new", "--base", "embedded:vti"), "embedded:vit")


def commands() -> Iterator[Typo]:
    """Commands, their options, and what options take."""
    for command in (*RUNS, *MANY, *LISTS):
        name = command.__name__
        yield Typo((slip(name),), name)
        for word, parameter in inspect.signature(command).parameters.items():
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
                option = f"--{word.strip('_').replace('_', '-')}"
                needed = ["--out", "new"] if name in ("merge", "export") and option != "--out" else []
                words = (name, *(["x"] if name in TAKES else []), *needed, f"--{slip(option[2:])}", "1")
                yield Typo(words, option)
    yield Typo(("--hlep",), "--help")
    yield from (Typo(("show", slip(slug)), slug) for slug in own()[3:13])
    yield from (Typo(("claims", slip(slug)), slug) for slug in claimed())
    yield from (Typo(("sweep", "ok.toml", "--methods", slip(slug)), slug) for slug in own()[13:18])
    yield Typo(("export", "runs/first", "--out", "new", "--to", "petf"), "peft")
    for command in ("compare", "report"):
        yield Typo((command, "runs", "--baseline", "loar"), "lora")
    yield Typo(("compare", "runs", "--keys", "final_avrage"), "final_average")
    yield Typo(("report", "runs", "--plots", "new", "--format", "pgn"), "png")
    yield Typo(("path", "runs/first", "--plot", "line.pgn"), ".png")
    yield Typo(("evaluate", "runs/first", "--task", "digist-1"), "digits-1")
    yield Typo(("path", "runs/first", "--tasks", "digits-1,digist-2"), "digits-2")
    yield Typo(("merge", "runs/first", "--out", "new", "--blocks", "adpater"), "adapter")
    yield Typo(("sweep", "ok.toml", "--grid", "train.rl=[1, 2]"), "lr")
    yield Typo(("sweep", "ok.toml", "--grid", "train.lr=lgo(1, 2, 3)"), "log")
    yield Typo(("sweep", "ok.toml", "--grid", 'strategy=[[{kind="ecw"}]]'), "ewc")
    yield Typo(("--import", "mymodlue", "methods"), "mymodule")


TAKES = {"run", "resume", "log", "evaluate", "path", "undo", "merge", "export", "sweep", "compare", "claims", "show"}


def typos() -> list[Typo]:
    return [*dict.fromkeys((*schema(), *parts(), *places(), *commands()))]


def meant(typo: Typo, said: str) -> bool:
    """Say whether the first choice that is named is the one that was meant."""
    named = re.split("did you mean", said, maxsplit=1, flags=re.IGNORECASE)[-1]
    return named[: len(typo.meant) + 3].strip(" '\"?").startswith(typo.meant)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a config, rows, pictures, a base and a run, as far as a typo is checked."""
    place = tmp_path_factory.mktemp("typos")
    (place / "ok.toml").write_text('method = "lora"\n')
    (place / "rows.jsonl").write_text('{"input": "a", "target": "b"}\n')
    (place / "mymodule.py").write_text("raise SystemExit('imported')\n")
    for name in ("pictures/train", "bases/tiny", "runs/first/adapter"):
        (place / name).mkdir(parents=True)
    (place / "runs/first/config.toml").write_text('method = "lora"\n')
    tasks = [{"name": "digits-1"}, {"name": "digits-2"}]
    (place / "runs/first/environment.json").write_text(json.dumps({"stream": {"tasks": tasks}}))
    found = {"method": "lora", "seed": 0, "stream": "s", "model": "m", "metric": "accuracy", "final_average": 0.5}
    found |= {"forgetting_first_minus_last": None, "learning_accuracy": 0.5}
    (place / "runs/first/results.json").write_text(json.dumps({**found, "tasks": ["a"], "matrix": [[0.5]]}))
    sites = [{"name": "a", "blocks": [{"label": "adapter"}]}]
    (place / "runs/first/adapter/adapter.json").write_text(json.dumps({"sites": sites}))
    return place


def check_answers(made: list[Typo], folder: Path, names: Callable[[Typo, str], bool]) -> None:
    """Check that each is answered with exit code 2 and what `names` looks for, soon and without torch."""
    done = python("-c", RUNNER, folder=folder, text=json.dumps([typo.words for typo in made]))
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == len(made), done.stderr[-2000:]
    wrong = [
        f"{' '.join(typo.words)}: {code}, {said.strip()[:300]!r}, {heavy}"
        for typo, (code, said, _, heavy) in zip(made, answers, strict=True)
        if code != 2 or heavy or not names(typo, said)
    ]
    assert not wrong, f"{len(wrong)} of {len(made)}\n" + "\n".join(wrong)
    slowest = max(seconds for _, _, seconds, _ in answers)
    assert slowest < SECONDS, f"{slowest:.2f} s of processor time"


def test_every_typo_is_answered_with_the_nearest_choice_before_torch_loads(folder: Path) -> None:
    made = typos()
    assert len(made) >= 200
    check_answers(made, folder, meant)


OUT_OF_RANGE: dict[str, tuple[str, dict[str, Any]]] = {
    "mora": ("gate", {"top_k": 0}),
    "allora": ("form", {"eta": 0.0}),
    "melora": ("form", {"groups": 0}),
    "moe-lora": ("form", {"experts": 0}),
    "lora-plus": ("dynamics", {"ratio": 0.0}),
    "dylora": ("dynamics", {"success": 1.0}),
    "adalora": ("dynamics", {"initial": 1.0}),
    "altlora": ("dynamics", {"beta1": 1.5}),
}
"""Values that a method's own class refuses, by a bound of the field."""


def beyond() -> Iterator[Typo]:
    """Numbers just out of the range that a field of a part, or of the schema, has."""
    for kind, part in kinds().items():
        found = attribute(part, "Settings")
        assert found is not None
        for field in fields(outline(found)):
            yield from (
                run({"adapter.dynamics": {"kind": kind, field.name: value}}, field.name)
                for value in outside(field.type)
            )
    for slug, (seam, values) in OUT_OF_RANGE.items():
        yield run({"method": slug, f"adapter.{seam}": values}, next(iter(values)))
    yield run({"train.betas": [0.9, 1.0]}, "train.betas")
    yield run({"strategy": [{"kind": "ewc"}, {"kind": "ewc"}]}, "ewc")
    yield Typo(("demo", "--seed", "-1"), "--seed")
    yield Typo(("run", "ok.toml", "--out", "runs/first"), "runs/first")
    yield Typo(("report", "runs", "--plots", "ok.toml"), "ok.toml")
    yield Typo(("sweep", "ok.toml", "--methods", "mora", "--grid", "adapter.gate.top_k=[1, 0]"), "top_k")


def outside(kind: Any) -> Iterator[int | float]:
    """A number below the least, and one above the most, that a type takes; a whole one where it is whole."""
    limits = [limit for part in get_args(kind) for limit in getattr(part, "metadata", ())]
    whole = int if int in get_args(kind) else float
    for limit in limits:
        for bound, step in (("ge", -1), ("gt", 0), ("le", 1), ("lt", 0)):
            if hasattr(limit, bound):
                yield whole(getattr(limit, bound) + step)


def test_a_value_out_of_range_is_told_before_torch_loads(folder: Path) -> None:
    made = [*beyond()]
    assert len(made) >= 30
    check_answers(made, folder, lambda typo, said: typo.meant in said)


@pytest.mark.parametrize("slug", OUT_OF_RANGE)
def test_what_is_refused_early_is_refused_by_the_class_too(slug: str) -> None:
    from rankwise import api
    from rankwise.errors import UsageError

    seam, values = OUT_OF_RANGE[slug]
    with pytest.raises(UsageError, match=next(iter(values))):
        api.resolve({"method": slug, "adapter": {seam: values}})


def test_a_word_of_another_library_stands_for_a_key_there_is() -> None:
    tables = {name: type(value).model_fields for name, value in Config() if isinstance(value, Section)}
    for meant in THEIRS.values():
        table, key = meant.partition(" ")[0].split(".")
        assert key in tables[table], meant


def test_the_defaults_of_every_method_are_in_range(folder: Path) -> None:
    """Nothing that a class takes is refused early: complete configs pass."""
    from rankwise import api
    from rankwise.cli.parts import check_parts

    for slug in own():
        check_parts(api.resolve({"method": slug})[0], slug)
    for kind in kinds():
        check_parts(api.resolve({"method": "lora", "strategy": [{"kind": kind}]})[0], kind)


@pytest.mark.parametrize(
    "words",
    [
        ("run", "ok.toml", "--set", 'strategy=[{kind="replya"}]'),
        ("run", "ok.toml", "--set", "method=lroa"),
        ("sweep", "ok.toml", "--grid", "adapter.dynamics.kind=['lroa-plus']"),
    ],
)
def test_a_typo_costs_less_than_a_second_with_the_start_of_python(folder: Path, words: tuple[str, ...]) -> None:
    before = os.times()
    done = python("-m", "rankwise", *words, folder=folder)
    after = os.times()
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    assert (done.returncode, "did you mean" in done.stderr) == (2, True), done.stderr
    assert spent < SECONDS, f"{spent:.2f} s of processor time"


def test_what_is_read_from_source_is_what_the_classes_say() -> None:
    """The light outline of each part has the fields, choices and numbers of the class that is used later."""
    from rankwise import api, papers
    from rankwise.adapters.branch import own_settings

    for kind, part in kinds().items():
        found, real = attribute(part, "Settings"), api.part_of(kind).Settings
        assert found is not None
        assert plain(outline(found)) == plain(real), kind
    for slug in own():
        method = papers.method(slug)
        gate, form = part_of(slug, "gate"), part_of(slug, "form")
        assert gate is not None and form is not None
        assert plain(outline(gate)) == plain(method.gate), slug
        assert plain(outline(form, besides="Branch")) == {k: plain(method.form)[k] for k in own_settings(method.form)}


def plain(kind: type) -> dict[str, Any]:
    """Each field's type by name, limits left out, in one spelling."""
    hints = get_type_hints(kind)
    return {field.name: spelt(hints[field.name]) for field in fields(kind)}


def spelt(kind: Any) -> Any:
    if get_origin(kind) is Literal:
        return ("one of", get_args(kind))
    if get_origin(kind) in (Union, type(int | None)):
        return ("either", frozenset(spelt(part) for part in get_args(kind)))
    return (get_origin(kind), tuple(map(spelt, get_args(kind)))) if get_args(kind) else kind


def test_words_are_left_alone_where_they_may_be_right(folder: Path) -> None:
    """What only looks like a slip passes: a hub id, an own module's name, a file that is there."""
    from rankwise.cli.common import check_config

    for name in (
        "google/vit-tiny",
        "gpt2",
        "bert",
        "hub:bases/tyni",
        "hub:vit",
        "bases/tiny",
        "embedded:vit",
        "minilm",
    ):
        check_config(folder / "ok.toml", [f"model.name={name}"])
    check_config(folder / "ok.toml", ['adapter.sites=["query-key", "blocks.*.fc1"]', "adapter.init=pissa"])
    check_config(folder / "ok.toml", ["stream.name=x", "stream.train=rows.jsonl", "stream.test=memory:rows"])
