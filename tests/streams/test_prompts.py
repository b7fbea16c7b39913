"""Instruction streams: prompts from templates, answers as labels where they are few, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from rankwise.errors import DataError, UsageError
from rankwise.streams import Stream, build

LABELLED = {"text": ["one", "two", "three", "four"] * 5, "label": ["good", "bad"] * 10}
FREE = {"first": [f"q{i}" for i in range(20)], "second": ["?"] * 20, "target": [f"answer {i}" for i in range(20)]}


def made(**stream: Any) -> Stream:
    data = {"labelled": LABELLED, "free": FREE}
    values = {"name": "asked", "kind": "instruction", "validation": 0, **stream}
    return build(values, 0, data=data)


def one(**task: Any) -> Stream:
    return made(tasks=[{"name": "mood", "train": "memory:labelled", "input": "text", "target": "label", **task}])


def test_rows_become_pairs_of_prompt_and_answer():
    stream = one(prompt="Mood? {options}\n{text} {is} it\nAnswer:".replace("{is} ", ""))
    task = stream.tasks[0]
    assert stream.kind == "instruction" and stream.class_names == ("bad", "good")
    for split in task.splits().values():
        for (prompt, answer), label in zip(split.inputs, split.labels.tolist(), strict=True):
            text = prompt.split("\n")[1].removesuffix(" it")
            assert prompt == f"Mood? bad, good\n{text} it\nAnswer:"
            assert answer == stream.class_names[label] == ("good" if text in ("one", "three") else "bad")


def test_without_a_template_the_prompt_is_the_input():
    assert {prompt for prompt, _ in one().tasks[0].train.inputs} == {"one", "two", "three", "four"}


def test_two_input_columns_and_answers_of_their_own():
    tasks = [
        {"name": "open", "train": "memory:free", "input": ["first", "second"], "prompt": "{second}{first} {first}"},
        {"name": "plain", "train": "memory:free", "input": ["first", "second"]},
    ]
    stream = made(tasks=tasks)
    assert stream.class_names == ("open", "plain")
    assert [task.classes for task in stream.tasks] == [(0,), (1,)]
    for (prompt, answer), row in zip(stream.tasks[0].train.inputs, stream.tasks[0].train.ids.tolist(), strict=True):
        assert (prompt, answer) == (f"?q{row} q{row}", f"answer {row}")
    assert stream.tasks[1].train.inputs[0][0].endswith("\n?")


def test_braces_in_a_text_stay_as_they_are():
    rows = {"text": ["{label} {options}", "b", "c", "d", "e"] * 2, "label": ["x"] * 10}
    stream = build(
        {
            "name": "s",
            "kind": "instruction",
            "train": "memory:rows",
            "input": "text",
            "prompt": "<{text}>",
            "validation": 0,
        },
        0,
        data={"rows": rows},
    )
    prompts = {prompt for split in stream.tasks[0].splits().values() for prompt, _ in split.inputs}
    assert "<{label} {options}>" in prompts


def test_one_file_may_hold_several_tasks():
    rows = {**LABELLED, "family": ["odd", "odd", "even", "even"] * 5}
    values = {
        "name": "s",
        "kind": "instruction",
        "train": "memory:rows",
        "group_by": "family",
        "input": "text",
        "validation": 0,
    }
    stream = build(values, 0, data={"rows": rows})
    assert sorted(task.name for task in stream.tasks) == ["even", "odd"]
    assert len(stream.class_names) == 4


@pytest.mark.parametrize(
    ("task", "said"),
    [
        ({"prompt": "no place"}, "put {text} where its text belongs"),
        ({"prompt": "{text} {txet}"}, "{txet} is no input column; did you mean 'text'?"),
        ({"train": "memory:free", "input": "first", "target": "target", "prompt": "{first} {options}"}, "no small set"),
    ],
)
def test_templates_that_do_not_fit_are_refused(task, said):
    with pytest.raises(DataError) as caught:
        one(**task)
    assert said in str(caught.value) and "mood" in str(caught.value)


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(UsageError, match="'prompt' needs kind"):
        made(kind="cross-domain", train="memory:labelled", prompt="{text}")
    with pytest.raises(UsageError, match="'classes_per_task' divides classes"):
        made(train="memory:labelled", classes_per_task=2)
    with pytest.raises(DataError, match="needs texts"):
        build({"name": "digits", "kind": "instruction"}, 0)


def test_the_tasks_of_the_olora_benchmark(shared):
    folder = shared / "data/text_cl/olora"
    names = ["sst2", "agnews", "copa"]
    tasks = [
        {"name": n, "train": str(folder / f"{n}.train.parquet"), "test": str(folder / f"{n}.test.parquet")}
        for n in names
    ]
    stream = build({"name": "o", "kind": "instruction", "tasks": tasks, "prompt": "{options}\n{input}\nAnswer:"}, 0)
    assert [len(task.classes) for task in stream.tasks] == [2, 4, 2]
    assert [len(task.test) for task in stream.tasks] == [872, 1000, 100]
    prompt, answer = stream.tasks[1].train.inputs[0]
    assert prompt.startswith("Business, Science or Technology, Sports, World\n") and prompt.endswith("Answer:")
    assert answer in ("Business", "Science or Technology", "Sports", "World")
