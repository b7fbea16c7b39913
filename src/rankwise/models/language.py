"""Language models with their heads: prompts and answers as tokens, logits at the answers, greedy generation.

A row is a prompt, or a pair (prompt, answer). Training pads on the right and marks the tokens of the answer; generation
pads on the left, so that every row's next token stands in the last column.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto import modeling_auto

from rankwise.adapters import using
from rankwise.errors import DataError, nearest
from rankwise.models.base import averaged
from rankwise.models.text import padded

Form = Literal["causal", "seq2seq"]
HEADS: Mapping[Form, Mapping[Any, Any]] = {
    "seq2seq": modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    "causal": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
}
"""Form of a language head -> model_type -> the class of transformers that has it."""
CACHED = frozenset({"input_ids", "attention_mask", "past_key_values"})  # arguments without which nothing is generated


@dataclass(frozen=True)
class Answers:
    """How a base answers: the form of its language head, and how long an answer may be."""

    form: Literal["auto", "causal", "seq2seq"] = "auto"
    """causal: one stack reads on from the prompt; seq2seq: an encoder reads, a decoder writes; auto: as the base is."""
    length: int = 32
    """Tokens of an answer at most, the end token counted."""
    end: str | None = None
    """The tokenizer's token that ends an answer; None: its end of text."""


class Reading(NamedTuple):
    """What a forward over prompts with their answers gives."""

    logits: Tensor
    """[N, A, vocabulary]: logits[:, t] is for the answers' token t, see `Language.targets`."""
    features: Tensor
    """[N, dim]: the states that `Backbone.features` would give for the prompts alone."""
    hidden: tuple[Tensor, ...]
    """States after the embedding and after each layer, [N, T, dim] each; of seq2seq the encoder's, the decoder's."""
    real: tuple[Tensor, ...]
    """For each of them, 1 at tokens and 0 at padding: [N, T]."""


@dataclass(frozen=True, eq=False)
class Language:
    """How one language model reads prompts and writes answers."""

    form: Form
    tokenizer: PreTrainedTokenizerBase = field(repr=False)
    prompt_length: int
    answer_length: int
    end: int
    """Token that ends an answer in training."""
    stops: tuple[int, ...]
    """Tokens that end an answer in generation."""
    start: int
    """First token of a decoder (seq2seq)."""
    filler: int
    """Token put where the mask is 0; any would do."""

    def encode(self, inputs: Sequence[Any] | Tensor) -> dict[str, Tensor]:
        """Turn prompts, or pairs (prompt, answer), into int64 tensors, one row an input.

        Prompts give `input_ids` and `attention_mask` [N, T]. Pairs add, for a causal model, the answer's tokens to each
        row and `answer_mask` [N, T]; for seq2seq, `answer_ids` and `answer_mask` [N, A]. An answer beyond its length
        loses its end. Each row is a function of its own text only. Raises DataError for anything else.
        """
        if isinstance(inputs, (str, Tensor)):
            raise DataError(f"a language base takes a list of prompts or of pairs, not one {type(inputs).__name__}")
        rows = [row if isinstance(row, tuple) else (row, None) for row in inputs]
        for place, row in enumerate(rows):
            if len(row) != 2 or not isinstance(row[0], str) or not isinstance(row[1], str | None):
                raise DataError(f"row {place} is {inputs[place]!r}; give prompts, or pairs of prompt and answer")
        prompts = [self.prompt(prompt) for prompt, _ in rows]
        if any(answer is None for _, answer in rows):
            return self._columns(input_ids=prompts, attention_mask=[[1] * len(p) for p in prompts])
        return self._pairs(prompts, [self.answer(prompt, str(answer)) for prompt, answer in rows])

    def _pairs(self, prompts: list[list[int]], answers: list[list[int]]) -> dict[str, Tensor]:
        if self.form == "seq2seq":
            batch = self._columns(input_ids=prompts, attention_mask=[[1] * len(p) for p in prompts])
            return {**batch, **self._columns(answer_ids=answers, answer_mask=[[1] * len(a) for a in answers])}
        rows = list(zip(prompts, answers, strict=True))
        marks = [[0] * len(p) + [1] * len(a) for p, a in rows]
        whole = [p + a for p, a in rows]
        return self._columns(input_ids=whole, attention_mask=[[1] * len(row) for row in whole], answer_mask=marks)

    def _columns(self, **rows: list[list[int]]) -> dict[str, Tensor]:
        return {key: padded(held, self.filler if key.endswith("ids") else 0) for key, held in rows.items()}

    def prompt(self, text: str) -> list[int]:
        """Return a prompt's tokens, special ones included; one that is too long loses its middle.

        Instructions stand at either end of a prompt, so both ends are kept (as LongBench, arXiv 2308.14508, does).
        """
        tokens = self._tokens(text)
        if len(tokens) <= self.prompt_length:
            return tokens or [self.end]
        tail = self.prompt_length // 2
        return tokens[: self.prompt_length - tail] + tokens[len(tokens) - tail :]

    def answer(self, prompt: str, text: str) -> list[int]:
        """Return an answer's tokens as they stand behind the prompt, and the end token; cut to the answer's length."""
        alone = self._tokens(text, special=False)
        if self.form == "causal":
            before, joined = self._tokens(prompt), self._tokens(prompt + ("" if prompt[-1:].isspace() else " ") + text)
            alone = joined[len(before) :] if joined[: len(before)] == before else alone
        return [*alone, self.end][: self.answer_length]

    def _tokens(self, text: str, *, special: bool = True) -> list[int]:
        tokens = list(self.tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"])  # pyright: ignore[reportArgumentType]
        ends = self.form == "causal" and tokens[-1:] == [self.end]  # some tokenizers end every text
        return tokens[:-1] if ends else tokens

    def text(self, tokens: Tensor) -> list[str]:
        """Turn generated tokens [N, A] into texts, each up to its first stop."""
        rows = [row[: next((i for i, t in enumerate(row) if t in self.stops), len(row))] for row in tokens.tolist()]
        return [str(self.tokenizer.decode(row, skip_special_tokens=True)) for row in rows]

    def targets(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return, for encoded pairs, tokens [N, A] that hold each row's answer, and a mask [N, A]: 1 where they do."""
        if self.form == "seq2seq":
            return batch["answer_ids"], batch["answer_mask"]
        first = int(batch["answer_mask"].any(0).int().argmax())
        return batch["input_ids"][:, first:], batch["answer_mask"][:, first:]

    def read(self, module: nn.Module, batch: Mapping[str, Tensor]) -> Reading:
        """Run one forward over encoded pairs."""
        ids, mask = batch["input_ids"], batch["attention_mask"]
        tokens, _ = self.targets(batch)
        options: dict[str, Any] = {"use_cache": False, "output_hidden_states": True}
        if self.form == "seq2seq":
            before = torch.cat([torch.full_like(tokens[:, :1], self.start), tokens[:, :-1]], 1)
            output = module(input_ids=ids, attention_mask=mask, decoder_input_ids=before, **options)
            read, written = output.encoder_hidden_states, output.decoder_hidden_states
            real = (mask,) * len(read) + (batch["answer_mask"],) * len(written)
            return Reading(output.logits, averaged(output.encoder_last_hidden_state, mask), (*read, *written), real)
        keep = tokens.shape[1] + 1  # the logits for a token stand one column before it
        few = {"logits_to_keep": keep} if "logits_to_keep" in arguments(module) else {}
        output = module(input_ids=ids, attention_mask=mask, **options, **few)
        last = (mask - batch["answer_mask"]).sum(1) - 1
        hidden = tuple(output.hidden_states)
        features = hidden[-1][torch.arange(len(ids), device=ids.device), last].float()
        return Reading(output.logits[:, -keep:-1], features, hidden, (mask,) * len(hidden))

    @torch.no_grad()
    def generate(self, module: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """Continue encoded prompts greedily: [N, at most answer_length] tokens, `filler` after a row's stop.

        The tokens are those of transformers' own greedy search.
        """
        writer = Writer(self.form, module, batch)
        first = writer.tokens if self.form == "causal" else torch.full_like(batch["input_ids"][:, :1], self.start)
        stops = torch.tensor(self.stops, device=first.device)
        open_rows = torch.ones(len(first), dtype=torch.bool, device=first.device)
        written, tokens = [first[:, :0]], first
        while len(written) <= self.answer_length and bool(open_rows.any()):
            chosen = writer.next(tokens).argmax(-1).masked_fill(~open_rows, self.filler)
            open_rows &= ~torch.isin(chosen, stops)
            tokens = chosen[:, None]
            written.append(tokens)
        return torch.cat(written, 1)


class Writer:
    """A forward of one token after the other, with the keys and values of those before."""

    def __init__(self, form: Form, module: nn.Module, batch: Mapping[str, Tensor]) -> None:
        """Start behind encoded prompts, padded on the right; an encoder reads them at once."""
        self.module, self.cache = module, None
        self.tokens, self.mask = batch["input_ids"], batch["attention_mask"]
        self.encoded: Any = None
        if form == "seq2seq":
            self.encoded = cast(PreTrainedModel, module).get_encoder()(input_ids=self.tokens, attention_mask=self.mask)
            return
        self.tokens, self.mask = to_the_right(self.tokens, self.mask), to_the_right(self.mask, self.mask)

    def next(self, tokens: Tensor) -> Tensor:
        """Return the logits [N, vocabulary] of what follows `tokens` [N, k], given all before."""
        if self.encoded is not None:
            given: dict[str, Any] = {"encoder_outputs": self.encoded, "decoder_input_ids": tokens}
        else:
            given = self._read_on(tokens)
        real = self.mask[:, -tokens.shape[1] :] if self.encoded is None else torch.ones_like(tokens)
        with using(self.module, tokens=real.bool()):
            output = self.module(attention_mask=self.mask, past_key_values=self.cache, use_cache=True, **given)
        self.cache = output.past_key_values
        return output.logits[:, -1].float()

    def _read_on(self, tokens: Tensor) -> dict[str, Any]:
        if self.cache is not None:
            self.mask = torch.cat([self.mask, torch.ones_like(tokens)], 1)
        places = (self.mask.cumsum(1) - 1).clamp_min(0)[:, -tokens.shape[1] :]
        values = {"position_ids": places, "logits_to_keep": 1}
        return {"input_ids": tokens, **{k: v for k, v in values.items() if k in arguments(self.module)}}


def to_the_right(rows: Tensor, mask: Tensor) -> Tensor:
    """Turn each row [N, T], padded on the right, so that its real entries end in the last column."""
    places = torch.arange(rows.shape[1], device=rows.device)
    return rows.gather(1, (places + mask.sum(1, keepdim=True)) % rows.shape[1])


def arguments(module: nn.Module) -> frozenset[str]:
    """Return the names that a model's forward takes."""
    return frozenset(inspect.signature(module.forward).parameters)


def form_of_class(name: str) -> Form | None:
    """Return the form of the language head that a class of transformers has; None: it has none.

    >>> form_of_class("LlamaForCausalLM"), form_of_class("T5ForConditionalGeneration"), form_of_class("LlamaModel")
    ('causal', 'seq2seq', None)
    """
    return next((form for form, classes in HEADS.items() if name in classes.values()), None)


def form_of(config: PreTrainedConfig, asked: str, where: str) -> Form:
    """Return the form of a base's language head. Raises DataError where it has none, or not the one asked for."""
    kind = config.model_type
    forms: dict[Form, bool] = {
        "seq2seq": bool(config.is_encoder_decoder) and kind in HEADS["seq2seq"],
        "causal": kind in HEADS["causal"] and kind not in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    }
    found: list[Form] = [form for form, has in forms.items() if has and asked in (form, "auto")]
    if not found:
        what = "that writes answers" if asked == "auto" else f"of form {asked!r}"
        remedy = "take a causal model (Llama, Qwen, Gemma, GPT-2) or T5, or objective.kind = 'classify'"
        raise DataError(f"{where}: model_type {kind!r} has no language head {what}; {remedy}")
    return found[0]


def language_of(
    module: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, answers: Answers, form: Form, max_length: int
) -> Language:
    """Find the special tokens of a model and its tokenizer; a prompt takes up to `max_length` tokens.

    Raises DataError where no token ends a text or starts a decoder, or the model's positions are too few.
    """
    where, config = str(module.name_or_path), module.config.get_text_config(decoder=True).to_dict()
    if missing := CACHED - arguments(module):
        raise DataError(f"{where}: {type(module).__name__} takes no {sorted(missing)[0]}; take another language model")
    stops = _stops(module, tokenizer, config["vocab_size"])
    end = tokenizer.eos_token_id if tokenizer.eos_token_id in stops else next(iter(stops), None)
    if answers.end is not None:
        end = _named(tokenizer, answers.end, where)
        stops = (end, *stops)
    start = config.get("decoder_start_token_id")
    start = config.get("pad_token_id") if start is None else start
    if not isinstance(end, int):
        raise DataError(f"{where}: no token ends a text; name one as eos_token in tokenizer_config.json")
    if form == "seq2seq" and not isinstance(start, int):
        raise DataError(f"{where}: no token starts the decoder; name one as decoder_start_token_id in config.json")
    filler = tokenizer.pad_token_id if isinstance(tokenizer.pad_token_id, int) else end
    length = _fitting(max_length, answers.length, form, config, where)
    return Language(form, tokenizer, length, answers.length, end, stops, start or 0, filler)


def _stops(module: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, vocabulary: int) -> tuple[int, ...]:
    """Return the tokens that end a text, all within the vocabulary: the model's own, then the tokenizer's."""
    settings: Any = module.generation_config
    own = [] if settings is None or settings.eos_token_id is None else settings.eos_token_id
    both = [*([own] if isinstance(own, int) else own), tokenizer.eos_token_id]
    return tuple(dict.fromkeys(t for t in both if isinstance(t, int) and 0 <= t < vocabulary))


def _named(tokenizer: PreTrainedTokenizerBase, token: str, where: str) -> int:
    known = tokenizer.get_vocab()
    if token not in known:
        raise DataError(f"{where}: objective.end = {token!r} is no token; {nearest(token, known)[:200]}")
    return known[token]


def _fitting(prompt: int, answer: int, form: Form, config: Mapping[str, Any], where: str) -> int:
    """Shorten the prompt to the model's positions, which a causal model shares between prompt and answer."""
    positions = config.get("max_position_embeddings") or config.get("n_positions")
    if form == "seq2seq" or positions is None:
        return prompt
    if positions <= answer:
        raise DataError(f"{where}: {positions} positions leave no room for a prompt; lower objective.max_new_tokens")
    return min(prompt, positions - answer)
