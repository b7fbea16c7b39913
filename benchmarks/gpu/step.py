"""A training step on a 1B-class random Llama in bfloat16 on a GPU: floor, PEFT LoRA, ours, full fine-tuning.

    python benchmarks/gpu/step.py [--reps 20] [--layers 16] [--out step-gpu.json]

The floor is the frozen model: forward, and backward through activations alone to an input perturbation. Candidates are
built and measured in turns of one process (each is freed before the next is built, so that peaks are its own), every
round from a fresh start; times come from device events around a step, after warm-up, and are medians over all rounds.
Before anything is timed, our loss and gradients are compared with PEFT's on the same values. Without a GPU it says so
and measures nothing.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import statistics
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import rankwise
from rankwise.adapters import banks_of, using

SIZES = {"hidden_size": 2048, "intermediate_size": 8192, "num_attention_heads": 32, "num_key_value_heads": 8}
VOCABULARY, SEQUENCE, BATCH, RANK, WARM, ROUNDS = 32_000, 1024, 4, 16, 5, 3
CLOSE = 3e-2
"""Largest relative distance of gradients in bfloat16 that counts as the same."""
Step = Callable[[], torch.Tensor]


def base(layers: int) -> nn.Module:
    """A Llama with random weights on the GPU, the same each time."""
    torch.manual_seed(0)
    config = LlamaConfig(
        **SIZES, num_hidden_layers=layers, vocab_size=VOCABULARY, max_position_embeddings=SEQUENCE, dtype=torch.bfloat16
    )
    with torch.device("cuda"):
        return LlamaForCausalLM(config).to(torch.bfloat16).eval()


def tokens() -> torch.Tensor:
    """Random token ids, the same each time."""
    return torch.randint(VOCABULARY, (BATCH, SEQUENCE), generator=torch.Generator().manual_seed(1)).cuda()


def ours(layers: int) -> nn.Module:
    """The base with our LoRA, its factors in the dtype of the base."""
    return rankwise.adapt(base(layers), "lora", rank=RANK).to(torch.bfloat16).train()


def theirs(layers: int) -> nn.Module:
    """The base with PEFT's LoRA of the same rank on the same projections."""
    config = peft.LoraConfig(r=RANK, lora_alpha=RANK, target_modules="all-linear", task_type="CAUSAL_LM")
    return peft.get_peft_model(base(layers), config, autocast_adapter_dtype=False).train()


def whole(layers: int) -> nn.Module:
    """The base, every weight learning."""
    return base(layers).requires_grad_(True).train()


def floor(layers: int) -> Step:
    """Forward and backward through activations alone."""
    model, batch = base(layers).requires_grad_(False).train(), tokens()
    shape = (BATCH, SEQUENCE, SIZES["hidden_size"])
    nudge = torch.zeros(shape, dtype=torch.bfloat16, device="cuda", requires_grad=True)

    def step() -> torch.Tensor:
        nudge.grad = None
        loss = model(inputs_embeds=model.get_input_embeddings()(batch) + nudge, labels=batch).loss
        loss.backward()
        return loss.detach()

    return step


def learning(make: Callable[[int], nn.Module], layers: int, *, fused: bool = True) -> Step:
    """Forward, backward and AdamW on what learns."""
    model, batch = make(layers), tokens()
    rule = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, fused=True)

    def step() -> torch.Tensor:
        rule.zero_grad(set_to_none=True)
        with using(model, fused=fused):
            loss = model(input_ids=batch, labels=batch).loss
            loss.backward()
        rule.step()
        return loss.detach()

    return step


CANDIDATES: Mapping[str, Callable[[int], Step]] = {
    "floor": floor,
    "PEFT LoRA": partial(learning, theirs),
    "lora": partial(learning, ours),
    "lora, plain path": partial(learning, ours, fused=False),
    "finetune": partial(learning, whole),
}
"""Name -> what makes the step for a number of layers."""


def compared(layers: int = 2) -> dict[str, float]:
    """Relative distance of our loss and gradients from PEFT's on the same factors, on a few layers."""
    mine, other, batch = ours(layers), theirs(layers), tokens()[:1]
    pairs = []
    for name, (_, bank) in banks_of(mine).items():
        module = other.get_submodule(f"base_model.model.{name}")
        pairs += [(bank.live["A"], module.lora_A["default"].weight), (bank.live["B"], module.lora_B["default"].weight)]
    with torch.no_grad():
        for a, b in pairs:
            a.normal_(0.0, 0.02)
            b.copy_(a)
    losses = [model(input_ids=batch, labels=batch).loss for model in (mine, other)]
    for loss in losses:
        loss.backward()
    off = [distance(a.grad, b.grad) for a, b in pairs]
    return {"loss": distance(*(loss.detach() for loss in losses)), "gradients": max(off)}


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative distance in float32."""
    return float((found.float() - expected.float()).norm() / expected.float().norm())


def timed(make: Callable[[int], Step], layers: int, reps: int) -> tuple[list[float], float]:
    """Milliseconds of each of `reps` steps, and the peak of device memory in GB."""
    free()
    step = make(layers)
    for _ in range(WARM):
        step()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    marks = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(reps)]
    for start, end in marks:
        start.record()
        loss = step()
        end.record()
    torch.cuda.synchronize()
    if not bool(torch.isfinite(loss)):
        raise SystemExit("a step's loss is not finite: nothing measured here counts")
    return [start.elapsed_time(end) for start, end in marks], torch.cuda.max_memory_allocated() / 1e9


def free() -> None:
    """Give the device memory of the last candidate back."""
    gc.collect()
    torch.cuda.empty_cache()


def measured(layers: int, reps: int) -> dict[str, Any]:
    """Every candidate in every round; a later round starts one further."""
    names, times, memory = list(CANDIDATES), dict[str, list[float]](), dict[str, float]()
    for lap in range(ROUNDS):
        for name in names[lap:] + names[:lap]:
            taken, peak = timed(CANDIDATES[name], layers, reps)
            times.setdefault(name, []).extend(taken)
            memory[name] = max(memory.get(name, 0.0), peak)
    medians = {name: statistics.median(taken) for name, taken in times.items()}
    return {
        name: {"ms": ms, "ratio": ms / medians["floor"], "fastest_ms": min(times[name]), "peak_gb": memory[name]}
        for name, ms in medians.items()
    }


def machine() -> dict[str, str]:
    """Where, in general words."""
    versions = {module.__name__: module.__version__ for module in (torch, transformers, peft)}
    return {
        "gpu": torch.cuda.get_device_name(),
        "cuda": str(torch.version.cuda),
        "python": platform.python_version(),
    } | versions


def main() -> int:
    """Compare, measure, print, and write where --out says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reps", type=int, default=20, help="steps of a candidate in each of three rounds")
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    if not torch.cuda.is_available():
        print("no CUDA device here: nothing is measured")
        return 0
    agreement = compared()
    print(f"ours against PEFT: loss {agreement['loss']:.1e}, gradients {agreement['gradients']:.1e}")
    if not (agreement["gradients"] <= CLOSE and agreement["loss"] <= CLOSE):
        print("they differ: nothing is timed", file=sys.stderr)
        return 1
    found = measured(given.layers, given.reps)
    for name, row in found.items():
        print(f"{name:18} {row['ms']:8.1f} ms  {row['ratio']:.3f} x floor  {row['peak_gb']:.2f} GB at most")
    setting = {
        **SIZES,
        "layers": given.layers,
        "vocabulary": VOCABULARY,
        "sequence": SEQUENCE,
        "batch": BATCH,
        "rank": RANK,
    }
    results = {"machine": machine(), "setting": setting, "against_peft": agreement, "step": found}
    if given.out is not None:
        given.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
