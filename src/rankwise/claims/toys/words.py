"""Three domains of short strings of words on a small Llama that knows the words but not the answers.

recall: three keys with their values and one key again, its value is the answer; sums: a sum modulo 7; brackets: those
that close an open run. The base (2 blocks of 64 features) has read prompts of all three with answers that were drawn.
"""

from __future__ import annotations

import string
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Generator, Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from rankwise.api import learner_of, resolve
from rankwise.config import merged
from rankwise.learning.learner import Learner
from rankwise.seeds import generator

KEYS, DIGITS = list(string.ascii_lowercase[:8]), list(string.digits[:7])
OPEN, CLOSE = list("([{<"), list(")]}>")
WORDS = ["</s>", "?", "+", "=", "mod", *KEYS, *DIGITS, *OPEN, *CLOSE]
ROWS = {"train": 1300, "test": 120}
READ, BATCH = 300, 64

Row = tuple[str, str]
"""Prompt and answer."""


def pick(rng: Generator, words: Sequence[str], count: int) -> list[str]:
    """Draw `count` different words."""
    return [str(words[i]) for i in torch.randperm(len(words), generator=rng)[:count].tolist()]


def draw(rng: Generator, words: Sequence[str], count: int) -> list[str]:
    """Draw `count` words, each from all of them."""
    return [str(words[i]) for i in torch.randint(len(words), (count,), generator=rng).tolist()]


def recall(rng: Generator) -> Row:
    """Three keys with values, one of the keys; its value."""
    keys, values = pick(rng, KEYS, 3), draw(rng, DIGITS, 3)
    asked = int(torch.randint(3, (1,), generator=rng))
    pairs = " ".join(f"{key} {value}" for key, value in zip(keys, values, strict=True))
    return f"{pairs} ? {keys[asked]}", values[asked]


def sums(rng: Generator) -> Row:
    """Two digits; their sum modulo 7."""
    a, b = draw(rng, DIGITS, 2)
    return f"{a} + {b} mod =", str((int(a) + int(b)) % 7)


def brackets(rng: Generator) -> Row:
    """Two to four open brackets; those that close them."""
    opened = draw(rng, OPEN, int(torch.randint(2, 5, (1,), generator=rng)))
    closed = [CLOSE[OPEN.index(word)] for word in reversed(opened)]
    return " ".join(opened), " ".join(closed)


DOMAINS: Mapping[str, Callable[[Generator], Row]] = {"recall": recall, "sums": sums, "brackets": brackets}


def data(seed: int) -> dict[str, dict[str, list[str]]]:
    """Return the rows of each domain's parts by name, as a config's "memory:<name>" takes them."""
    rows = {
        f"{d}-{p}": [row(generator(seed, d, p, i)) for i in range(n)]
        for p, n in ROWS.items()
        for d, row in DOMAINS.items()
    }
    return {name: {"input": [p for p, _ in found], "target": [a for _, a in found]} for name, found in rows.items()}


@cache
def weights() -> dict[str, Tensor]:
    """Return the base's weights after it has read prompts with drawn answers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = LlamaForCausalLM(LLAMA).train()
        rule = torch.optim.AdamW(model.parameters(), lr=3e-3)
        for step in range(READ):
            rows = [_unrelated(generator(5, "read", step, i)) for i in range(BATCH)]
            width = max(map(len, rows))
            ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
            rule.zero_grad()
            model(ids, labels=ids).loss.backward()
            rule.step()
    return {name: tensor.detach() for name, tensor in model.state_dict().items()}


LLAMA = LlamaConfig(
    vocab_size=len(WORDS),
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=4,
    max_position_embeddings=32,
    bos_token_id=None,
    eos_token_id=0,
    pad_token_id=None,
    tie_word_embeddings=False,
)


def _unrelated(rng: Generator) -> list[int]:
    """Return the token numbers of a prompt with the answer of another one of its domain."""
    row = list(DOMAINS.values())[int(torch.randint(len(DOMAINS), (1,), generator=rng))]
    prompt, answer = row(rng)[0], row(rng)[1]
    return [WORDS.index(word) for word in f"{prompt} {answer} </s>".split()]


def base(folder: Path) -> Path:
    """Write the base, with its tokenizer of words, to `folder`."""
    model = LlamaForCausalLM(LLAMA)
    model.load_state_dict(weights())
    model.save_pretrained(folder)
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?", eos_token="</s>").save_pretrained(folder)
    return folder


def learner(method: str, seed: int, domains: Sequence[str] = tuple(DOMAINS), **tables: Any) -> Learner:
    """Return the learner of a method over `domains`, one after another."""
    tasks = [{"name": d, "train": f"memory:{d}-train", "test": f"memory:{d}-test"} for d in domains]
    stream = {"name": "words", "kind": "instruction", "input": "input", "target": "target", "tasks": tasks}
    with tempfile.TemporaryDirectory() as place:
        common = {
            "seed": seed,
            "method": method,
            "model": {"name": str(base(Path(place) / "base")), "max_length": 24},
            "stream": {**stream, "validation": 100},
            "objective": {"kind": "language", "max_new_tokens": 6},
            "train": {"batch_size": 32, "device": "cpu", "threads": 1, "log_every": 1000, "snapshot_seconds": 1e6},
        }
        config, found = resolve(merged(common, tables))
        return learner_of(config, found, data(seed))
