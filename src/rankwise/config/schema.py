"""The tables of a config."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from rankwise.config.numbers import Count, Fraction, NotNegative, Positive
from rankwise.config.objective import ClassifySettings, ObjectiveSettings
from rankwise.config.section import Section
from rankwise.config.stream import StreamSettings
from rankwise.errors import nearest

DEVICE = r"auto|cpu|cuda(:\d{1,3})?"


def _device(name: str) -> str:
    if not re.fullmatch(DEVICE, name):
        word = name.lower().replace("gpu", "cuda")
        raise ValueError(f"{name!r} is no device; {nearest(word, ('auto', 'cpu', 'cuda', 'cuda:N'))}")
    return name


def _listed(names: Any) -> Any:
    """Take one name for a list of it."""
    return [names] if isinstance(names, str) else names


def _distinct(names: list[str] | None) -> list[str] | None:
    """Refuse a name given twice; put the names in one order, as theirs means nothing, and none of them as None."""
    if names is not None and len(set(names)) < len(names):
        raise ValueError(f"{names} gives a name twice; give each once")
    return sorted(names) if names else None


class ModelSettings(Section):
    """`[model]`: the pretrained base."""

    name: str = Field(default="embedded:vit", min_length=1)
    """embedded:vit (in the package), minilm (extra `text`), a folder, or a Hugging Face hub id."""
    pooling: Literal["auto", "mean", "cls", "last"] = "auto"
    """How token features become one feature. auto: what suits the architecture."""
    max_length: Count = 128
    """Tokens a text is cut to. Memory grows with it."""
    revision: str | None = None
    """Commit, tag or branch on the hub; give a commit for a run that can be repeated."""
    trust_remote_code: bool = False
    """Run code that comes with the model. Only for sources you trust as you trust a program."""
    quantize: Literal["nf4"] | None = None
    """nf4: hold linear weights in 4 bits (an eighth of the memory; slower on a CPU), dequantised for each product. It
    needs the extra `quant`. Default: float32."""


class AdapterSettings(Section):
    """`[adapter]`: what is added, and where."""

    rank: Count = 8
    """Ranks of a block. More: more room for a task, more memory; parameters grow in proportion."""
    sites: str | Annotated[list[str], Field(max_length=10_000)] = "all-linear"
    """Modules to adapt: all-linear, mlp-span (beside each whole MLP), or names (a path, the end of a path, a glob)."""
    layers: Annotated[list[int], Field(min_length=2, max_length=2)] | None = None
    """First and last block to adapt, both included."""
    exclude: list[str] = []
    """Names taken out of `sites` again."""
    scale: Positive = 1.0
    """Factor on the update (LoRA's alpha / rank)."""
    dropout: Fraction = 0.0
    """Probability of dropping an input feature on the way into the adapter, in training."""
    init: str | None = None
    """Start of the factors: kaiming, gaussian, orthogonal, or a method that brings a start. Default: the method's."""
    growth: Literal["keep", "append"] | None = None
    """keep: one block through the stream; append: a new block a task, old ones frozen. Default: the method's."""
    gate: dict[str, Any] = {}
    """Settings of the method's gate; `rankwise show METHOD` lists them."""
    form: dict[str, Any] = {}
    """Settings of the method's kind of branch, where it has any."""
    dynamics: dict[str, Any] = {}
    """How gradients become updates: `kind` names the method or strategy whose rule is taken (default: the method's
    own), the other keys are its settings."""


class TrainSettings(Section):
    """`[train]`: the loop."""

    epochs: Count = 1
    """Passes over a task's training rows."""
    steps: Annotated[int, Field(ge=0)] | None = None
    """Optimiser steps a task; takes the place of epochs."""
    batch_size: Count = 32
    """Examples a step, over all processes and micro-batches together."""
    bucket: bool = False
    """Put texts of similar length into a batch: less padding. Which rows meet then depends on their lengths."""
    augment: Annotated[list[Literal["crop", "flip"]] | None, BeforeValidator(_listed), AfterValidator(_distinct)] = None
    """List of random views of training pictures, new in each epoch and rehearsal. crop: shifted by up to an eighth of
    height and width, black coming in at the edge; flip: one in two mirrored left to right (never for digits or letters,
    which it spoils). What is stored, scored or measured is the picture itself. Default: none."""
    lr: Positive = 1e-3
    """Peak learning rate of adapter or base. Pick it on validation data for each method before comparing."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Course of the learning rate over a task; cosine and linear end at 0."""
    warmup: Fraction = 0.0
    """Fraction of a task's steps in which the learning rate rises from 0."""
    weight_decay: NotNegative = 0.0
    """Decoupled weight decay (AdamW)."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """Rule for everything that no part of the method has a rule of its own for."""
    momentum: Fraction = 0.0
    """Momentum of sgd."""
    betas: Annotated[list[Fraction], Field(min_length=2, max_length=2)] = [0.9, 0.999]
    """AdamW's averaging factors."""
    clip: Positive | None = None
    """Largest global gradient norm; larger gradients are scaled down to it."""
    accumulate: Count = 1
    """Micro-batches a step is cut into, to save memory; the step stays the same to rounding."""
    precision: Literal["float32", "bf16"] = "float32"
    """Precision of forward products; parameters stay float32. bf16 is faster where the processor has it."""
    device: Annotated[str, AfterValidator(_device), Field(json_schema_extra={"pattern": f"^({DEVICE})$"})] = "auto"
    """auto, cpu, cuda or cuda:N."""
    threads: Count | None = None
    """Processor threads; a resumed run is equal to the bit only with the same number. Default: torch's."""
    workers: Annotated[int, Field(ge=0)] = 0
    """Threads that prepare batches ahead; the result does not depend on it."""
    shard_base: bool = False
    """Spread the frozen base over the processes (FSDP2); adapters stay whole on each."""
    eval_batch_size: Count = 256
    """Examples a forward in evaluation."""
    snapshot_seconds: NotNegative = 30.0
    """Least time between snapshots within a task; 0: after every step. One is always written when a task ends."""
    log_every: Count = 10
    """Steps between two loss lines in events.jsonl."""


class Config(Section):
    """A run."""

    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Decides class order, starting values, batches and every other draw."""
    method: str = "mora"
    """The recipe; `rankwise methods` lists them."""
    model: ModelSettings = ModelSettings()
    stream: StreamSettings = StreamSettings()
    objective: ObjectiveSettings = ClassifySettings()
    """What a task asks; which keys there are depends on its kind."""
    adapter: AdapterSettings = AdapterSettings()
    strategy: Annotated[list[dict[str, Any]], Field(max_length=64)] = []
    """What protects the past, in order: a kind each, and its settings."""
    train: TrainSettings = TrainSettings()
