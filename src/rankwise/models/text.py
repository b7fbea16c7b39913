"""Raw text to token numbers, padded on the right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rankwise.errors import DataError


def encode_texts(
    inputs: Sequence[Any] | Tensor, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> dict[str, Tensor]:
    """Turn texts, or pairs of texts, into int64 tensors [N, T]: `input_ids`, `attention_mask`, maybe `token_type_ids`.

    T is the longest text of this call, at most `max_length` tokens (longer ones are cut at the end). Padding is added
    here and not by the tokenizer, so that one without a padding token works too; the mask says what is real, and an
    empty text counts as one real token. Raises DataError for anything but strings and pairs of strings.
    """
    texts, others = _columns(inputs)
    if not texts:
        return dict.fromkeys(("input_ids", "attention_mask"), torch.zeros(0, 1, dtype=torch.int64))
    limit = min(max_length, tokenizer.model_max_length)
    columns: dict[str, Any] = dict(tokenizer(texts, others, truncation=True, max_length=limit, padding=False))
    token = tokenizer.pad_token_id
    fillers = {"input_ids": token if isinstance(token, int) else 0, "token_type_ids": 0}
    found = {key: padded(columns[key], filler) for key, filler in fillers.items() if key in columns}
    lengths = torch.tensor([max(1, len(row)) for row in columns["input_ids"]]).unsqueeze(1)
    return {**found, "attention_mask": (torch.arange(found["input_ids"].shape[1]) < lengths).long()}


def _columns(inputs: Sequence[Any] | Tensor) -> tuple[list[str], list[str] | None]:
    """Split inputs into first texts and, for pairs, second texts."""
    if isinstance(inputs, (str, Tensor)):
        raise DataError(f"a text base takes a list of strings or of pairs of strings, not one {type(inputs).__name__}")
    rows: list[tuple[Any, ...]] = [tuple(row) if isinstance(row, (tuple, list)) else (row,) for row in inputs]
    for place, row in enumerate(rows):
        if len(row) != len(rows[0]) or len(row) not in (1, 2) or not all(isinstance(text, str) for text in row):
            met = f"{type(inputs[place]).__name__} of {len(row)}"
            raise DataError(f"text {place} is a {met}; give strings only, or pairs of two strings only")
    return [row[0] for row in rows], [row[1] for row in rows] if rows and len(rows[0]) == 2 else None


def padded(rows: list[list[int]], filler: int) -> Tensor:
    """Stack rows of unequal length into [N, T], padded on the right; T is at least 1."""
    width = max((1, *(len(row) for row in rows)))
    return torch.tensor([row + [filler] * (width - len(row)) for row in rows], dtype=torch.int64)
