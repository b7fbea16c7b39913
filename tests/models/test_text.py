"""Texts become right-padded token numbers, with or without a padding token."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

from rankwise.errors import DataError
from rankwise.models.text import encode_texts

WORDS = {"[UNK]": 0, "a": 1, "cat": 2, "dog": 3, "sits": 4, "[PAD]": 9}


def tokenizer(**special: str) -> PreTrainedTokenizerFast:
    words = Tokenizer(WordLevel(WORDS, unk_token="[UNK]"))
    words.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", padding_side="left", **special)


def test_rows_are_padded_on_the_right_whatever_the_tokenizer_says():
    batch = encode_texts(["a cat sits", "dog"], tokenizer(pad_token="[PAD]"), 8)
    assert batch["input_ids"].tolist() == [[1, 2, 4], [3, 9, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["input_ids"].dtype == batch["attention_mask"].dtype == torch.int64


def test_no_padding_token_and_an_empty_text():
    batch = encode_texts(["a cat", ""], tokenizer(), 8)
    assert batch["input_ids"].tolist() == [[1, 2], [0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1], [1, 0]]


def test_long_texts_are_cut_and_pairs_are_joined():
    assert encode_texts(["a cat sits a dog"], tokenizer(), 2)["input_ids"].tolist() == [[1, 2]]
    assert encode_texts([("a cat", "a dog")], tokenizer(), 8)["input_ids"].tolist() == [[1, 2, 1, 3]]


def test_nothing_gives_nothing():
    assert encode_texts([], tokenizer(), 8)["input_ids"].shape[0] == 0


@pytest.mark.parametrize("wrong", [["a", ("a", "b")], ["a", 3], [("a", "b", "c")], "a cat", torch.zeros(2)])
def test_anything_else_is_refused(wrong):
    with pytest.raises(DataError, match="strings"):
        encode_texts(wrong, tokenizer(), 8)
