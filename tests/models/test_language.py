"""Language models from folders: prompts and answers as tokens, logits at the answers, generation as transformers'."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM

from rankwise.errors import DataError
from rankwise.models import Answers, Backbone, load_backbone

KINDS = ["gpt2", "llama", "qwen", "gemma", "t5"]
PROMPTS = ["the cat sits on a mat", "the dog", "question : a dog runs far away on a mat ? answer :", "red"]
PAIRS = list(zip(PROMPTS, ["yes", "a good cat", "no", "blue , red"], strict=True))


@pytest.fixture
def load(writers):
    def loaded(kind: str, length: int = 8, **options) -> Backbone:
        return load_backbone(str(writers(kind)), answers=Answers(length=length), **options)

    return loaded


@pytest.mark.parametrize("kind", KINDS)
def test_a_language_model_keeps_its_head_and_is_frozen(load, kind):
    backbone = load(kind)
    assert backbone.module.get_output_embeddings() is not None and not backbone.module.training
    assert not any(p.requires_grad for p in backbone.module.parameters())
    assert backbone.dim == 16 and backbone.language.form == ("seq2seq" if kind == "t5" else "causal")
    assert backbone.language.stops == (1,) and backbone.language.end == 1


def test_pairs_become_prompt_then_answer_then_end_with_only_the_answer_marked(load):
    batch = load("llama").encode([("the cat", "yes"), ("red", "a good dog")])
    assert batch["input_ids"].tolist() == [[2, 3, 12, 1, 1], [20, 8, 17, 4, 1]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]
    assert batch["answer_mask"].tolist() == [[0, 0, 1, 1, 0], [0, 1, 1, 1, 1]]


def test_seq2seq_pairs_are_read_and_written_apart(load):
    batch = load("t5").encode([("the cat", "yes"), ("red", "a good dog")])
    assert batch["input_ids"].tolist() == [[2, 3, 1], [20, 1, 1]]
    assert batch["answer_ids"].tolist() == [[12, 1, 1, 1], [8, 17, 4, 1]]
    assert batch["answer_mask"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]


def test_long_prompts_lose_their_middle_and_long_answers_their_end(load):
    language = load("llama", length=3, max_length=4).language
    assert language.prompt("the cat sits on a mat") == [2, 3, 8, 9]
    assert language.answer("red", "yes no yes no") == [12, 13, 12]
    assert language.answer("red", "yes no") == [12, 13, 1]
    assert load("llama", length=60, max_length=512).language.prompt_length == 4  # 64 positions


def test_what_is_no_prompt_or_pair_is_refused(load):
    backbone = load("llama")
    for bad in ("the cat", [3], [("a", 1)], [("a", "b", "c")]):
        with pytest.raises(DataError, match="prompts"):
            backbone.encode(bad)


@pytest.mark.parametrize("kind", KINDS)
def test_the_logits_are_those_of_each_answer_alone(load, kind):
    backbone = load(kind)
    language, module = backbone.language, backbone.module
    with torch.no_grad():
        batch = backbone.encode(PAIRS)
        logits, (tokens, mask) = language.read(module, batch).logits, language.targets(batch)
        for row, (prompt, answer) in enumerate(PAIRS):
            p, a = language.prompt(prompt), language.answer(prompt, answer)
            if kind == "t5":
                before = torch.tensor([[0, *a[:-1]]])
                want = module(input_ids=torch.tensor([p]), decoder_input_ids=before).logits[0]
            else:
                want = module(input_ids=torch.tensor([p + a])).logits[0, len(p) - 1 : -1]
            real = mask[row].bool()
            assert tokens[row][real].tolist() == a
            assert torch.allclose(logits[row][real], want, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_generation_is_that_of_transformers(load, kind):
    backbone = load(kind, length=12)
    language = backbone.language
    ours = language.generate(backbone.module, backbone.encode(PROMPTS))
    lengths = set()
    for row, prompt in zip(ours.tolist(), PROMPTS, strict=True):
        ids = torch.tensor([language.prompt(prompt)])
        options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
        whole = backbone.module.generate(ids, **options)[0].tolist()
        theirs = whole[1:] if kind == "t5" else whole[ids.shape[1] :]
        assert row[: len(theirs)] == theirs
        assert set(row[len(theirs) :]) <= {language.filler}
        lengths.add(len(theirs))
    assert ours.shape[1] == max(lengths)
    assert len({tuple(row) for row in ours.tolist()}) > 1


def test_generation_ends_at_the_first_stop_of_every_row(load):
    backbone = load("llama", length=12)
    language = backbone.language
    free = language.generate(backbone.module, backbone.encode(PROMPTS))
    stops = tuple(sorted({int(row[1]) for row in free}))
    stopping = type(language)(**{**vars(language), "stops": stops})
    ours = stopping.generate(backbone.module, backbone.encode(PROMPTS))
    assert ours.shape[1] <= 2
    assert [len(stopping.text(row[None])[0].split()) for row in ours] == [0 if r[0] in stops else 1 for r in free]


@pytest.mark.parametrize("kind", KINDS)
def test_features_of_a_language_model_do_not_depend_on_padding(load, kind):
    backbone = load(kind)
    with torch.no_grad():
        together = backbone.features(backbone.encode(PROMPTS))
        alone = torch.cat([backbone.features(backbone.encode([prompt])) for prompt in PROMPTS])
        with_answers = backbone.language.read(backbone.module, backbone.encode(PAIRS))
    assert torch.allclose(together, alone, atol=1e-5)
    assert torch.allclose(with_answers.features, together, atol=1e-5)
    assert len(with_answers.hidden) == (6 if kind == "t5" else 3)


def test_each_state_comes_with_the_mask_of_its_own_tokens(load):
    """Two pairs whose padded prompts are as long as their padded answers: no shape tells the two apart."""
    pairs = [("the cat sits", "the dog"), ("yes", "red blue on")]
    backbone = load("t5")
    batch = backbone.encode(pairs)
    assert batch["attention_mask"].shape == batch["answer_mask"].shape
    reading = backbone.language.read(backbone.module, batch)
    wanted = [batch["attention_mask"]] * 3 + [batch["answer_mask"]] * 3
    assert all(found is mask for found, mask in zip(reading.real, wanted, strict=True))


def test_models_without_a_language_head_are_refused(load, tmp_path):
    BertForMaskedLM(
        BertConfig(vocab_size=22, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    ).save_pretrained(tmp_path)
    for name in (str(tmp_path), "embedded:vit"):
        with pytest.raises(DataError, match="no language head that writes answers"):
            load_backbone(name, answers=Answers())
    with pytest.raises(DataError, match="no language head of form 'causal'"):
        load_backbone(load("t5").name, answers=Answers("causal"))
    with pytest.raises(DataError, match="no features of one input"):
        load_backbone(load("t5").name)


def test_a_model_without_an_end_token_is_refused(writers, tmp_path):
    folder = Path(shutil.copytree(writers("llama"), tmp_path / "endless"))
    for name, key in (
        ("config", "eos_token_id"),
        ("generation_config", "eos_token_id"),
        ("tokenizer_config", "eos_token"),
    ):
        file = folder / f"{name}.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), key: None}))
    with pytest.raises(DataError, match="no token ends a text"):
        load_backbone(str(folder), answers=Answers())


def test_too_few_positions_for_an_answer_are_refused(load):
    with pytest.raises(DataError, match="64 positions leave no room for a prompt"):
        load("llama", length=64)


def test_stories260k_writes_its_published_story(shared):
    backbone = load_backbone(str(shared / "data/weights/stories260K"), answers=Answers(length=40))
    ids = backbone.language.generate(backbone.module, backbone.encode(["Once upon a time", "Lily went to the"]))
    first, second = backbone.language.text(ids)
    assert first.startswith(", there was a little girl named Lily. She loved to play outside in the park. One day,")
    assert second.startswith("park")
    assert sum(p.numel() for p in backbone.module.parameters()) == 260032
