"""What is timed beside the frozen floor: ways of learning on one Llama with random weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial

import peft
import torch
from _times import Step
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import rankwise
from rankwise.adapters import Change, banks_of, grow, using

SIZES = {"hidden_size": 512, "num_hidden_layers": 6, "intermediate_size": 1376, "num_attention_heads": 8}
VOCABULARY, SEQUENCE, BATCH, RANK, THREADS = 4096, 256, 4, 16, 2


def base() -> nn.Module:
    """A Llama with random weights, the same each time."""
    torch.manual_seed(0)
    config = LlamaConfig(**SIZES, num_key_value_heads=8, vocab_size=VOCABULARY, max_position_embeddings=SEQUENCE)
    return LlamaForCausalLM(config).eval()


def tokens(rows: int = BATCH, length: int = SEQUENCE) -> torch.Tensor:
    """Random token ids, the same each time."""
    return torch.randint(VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(1))


def ours(method: str, tasks: int = 1) -> nn.Module:
    """The base with an adapter of so many tasks, only the last of which learns; every value is set."""
    model = rankwise.adapt(base(), method, rank=RANK)
    for task in range(1, tasks):
        wake(model)
        grow(model, [Change("freeze"), Change("append", str(task + 1), RANK)], seed=0)
    wake(model)
    return model.train()


@torch.no_grad()
def wake(model: nn.Module) -> None:
    """Give the live B small values: nothing is skipped because it is zero."""
    for _, bank in banks_of(model).values():
        bank.live["B"].normal_(0.0, 0.01, generator=torch.Generator().manual_seed(2))


def theirs() -> nn.Module:
    """The base with PEFT's LoRA of the same rank on the same seven projections."""
    return peft.get_peft_model(base(), lora_config()).train()


def lora_config() -> peft.LoraConfig:
    """Rank, scale and sites as ours."""
    return peft.LoraConfig(r=RANK, lora_alpha=RANK, target_modules="all-linear", task_type="CAUSAL_LM")


def whole() -> nn.Module:
    """The base, every weight learning."""
    return base().requires_grad_(True).train()


def floor(*, compiled: bool = False) -> Step:
    """Forward and backward through activations alone."""
    model, batch = base().requires_grad_(False).train(), tokens()
    run = torch.compile(model) if compiled else model
    nudge = torch.zeros(BATCH, SEQUENCE, SIZES["hidden_size"], requires_grad=True)

    def step() -> None:
        nudge.grad = None
        embedded = model.get_input_embeddings()(batch) + nudge
        run(inputs_embeds=embedded, labels=batch).loss.backward()

    return step


def learning(make: Callable[[], nn.Module], *, fused: bool = True, compiled: bool = False) -> Step:
    """Forward, backward and AdamW on what learns."""
    model, batch = make(), tokens()
    run = torch.compile(model) if compiled else model
    rule = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, fused=True)

    def step() -> None:
        rule.zero_grad(set_to_none=True)
        with nullcontext() if fused else using(model, fused=False):
            run(input_ids=batch, labels=batch).loss.backward()
        rule.step()

    return step


CANDIDATES: Mapping[str, Callable[[], Step]] = {
    "floor": floor,
    "PEFT LoRA": lambda: learning(theirs),
    "lora": lambda: learning(partial(ours, "lora")),
    "lora, plain path": lambda: learning(partial(ours, "lora"), fused=False),
    "codyra": lambda: learning(partial(ours, "codyra")),
    "mora, 1 task": lambda: learning(partial(ours, "mora")),
    "mora, 10 tasks": lambda: learning(partial(ours, "mora", 10)),
    "mora, 100 tasks": lambda: learning(partial(ours, "mora", 100)),
    "finetune": lambda: learning(whole),
}
"""Name -> what makes the step."""

COMPILED: Mapping[str, tuple[Callable[[], Step], Callable[[], Step]]] = {
    "floor": (floor, partial(floor, compiled=True)),
    **{
        name: (partial(learning, make), partial(learning, make, compiled=True))
        for name, make in (
            ("PEFT LoRA", theirs),
            ("lora", partial(ours, "lora")),
            ("mora, 1 task", partial(ours, "mora")),
            ("mora, 10 tasks", partial(ours, "mora", 10)),
        )
    },
}
"""Name -> what makes the step as it is, and under `torch.compile`."""
