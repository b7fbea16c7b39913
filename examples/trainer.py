"""Strategies on a `transformers.Trainer`, each train() a task. The model is adapted by rankwise, or live from PEFT."""

from __future__ import annotations

import sys
import tempfile
from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

import rankwise


def base() -> nn.Module:
    """Return a tiny language model; put LlamaForCausalLM.from_pretrained(...) in its place."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 16}
    return LlamaForCausalLM(LlamaConfig(**sizes, intermediate_size=32, vocab_size=32, max_position_embeddings=16))


def adapted() -> nn.Module:
    """Put an adapter of ours on the model."""
    return rankwise.adapt(base(), "lora", rank=4, sites=["q_proj", "v_proj"])


def with_peft() -> nn.Module:
    """Let PEFT put its own on: the strategies act on whatever learns."""
    from peft import LoraConfig, get_peft_model

    return get_peft_model(base(), LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))


def sentences(task: int) -> Any:
    """Return the training rows of a task: counting up in steps of `task`."""
    starts = torch.arange(32)
    rows = (starts[:, None] + task * torch.arange(8)) % 32
    return [{"input_ids": row, "labels": row} for row in rows]


def main(live_peft: bool = False) -> rankwise.LearningCallback:
    """Learn two tasks; return the callback, whose hooks hold the strategies."""
    model = with_peft() if live_peft else adapted()
    callback = rankwise.LearningCallback("ewc", ewc={"strength": 10.0})
    with tempfile.TemporaryDirectory() as folder:
        for task in (1, 2):
            arguments = TrainingArguments(folder, max_steps=10, learning_rate=1e-2, report_to=[], save_strategy="no")
            Trainer(model=model, args=arguments, train_dataset=sentences(task), callbacks=[callback]).train()
    return callback


if __name__ == "__main__":
    main("--peft" in sys.argv)
