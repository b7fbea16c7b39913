"""Strategies on a `transformers.Trainer`, and so on a live PEFT model: a callback that drives the hooks."""

from __future__ import annotations

from collections.abc import Mapping, Sized
from pathlib import Path
from typing import Any

import torch
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from rankwise.errors import ConflictError, StorageError, UsageError
from rankwise.files import write_file
from rankwise.learning.foreign import Hooks, Losses, build
from rankwise.tensors import load_tensors, save_tensors

FILE = "rankwise.safetensors"
"""State of the strategies, beside the Trainer's own in each of its checkpoints."""


def losses_one_by_one(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """Return the loss of each example [n] of a model that returns the mean loss of its batch: a forward for each."""
    count = len(next(iter(batch.values())))
    rows = [{name: tensor[i : i + 1] for name, tensor in batch.items()} for i in range(count)]
    return torch.stack([model(**row).loss for row in rows])


class LearningCallback(TrainerCallback):
    """Strategies for a Trainer: `Trainer(..., callbacks=[LearningCallback("ewc", ewc={...})])`.

    Each `train()` is a task; give the same callback to the Trainer of the next one, on the same model. The Trainer
    clips gradients (max_grad_norm) before the strategies shape them and add their own, so the sum is not clipped; set
    max_grad_norm = 0 and let a strategy's own bound hold where that matters. What the strategies keep goes into the
    Trainer's checkpoints and comes back with resume_from_checkpoint.
    """

    def __init__(
        self, *strategies: str, seed: int = 0, losses: Losses | None = None, **settings: Mapping[str, Any]
    ) -> None:
        """Name the strategies and their settings, as for `rankwise.learning`.

        `losses` gives each example's loss to strategies that look back at the data; default: the model's own loss,
        example by example.
        """
        self._made = (strategies, seed, losses or losses_one_by_one, settings)
        self.hooks: Hooks | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *, model: nn.Module, **given: Any
    ) -> None:
        """Begin a task."""
        _refuse_unfit(args)
        strategies, seed, losses, settings = self._made
        if self.hooks is None:
            self.hooks = build(model, strategies, seed, losses, settings)
        if self.hooks.model is not model:
            raise UsageError("this callback has begun on another model; make a new one, or go on with the same model")
        if state.global_step:
            self.hooks.restore(_read(args, state))
        else:
            self.hooks.begin_task()

    def on_pre_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        optimizer: torch.optim.Optimizer,
        **given: Any,
    ) -> None:
        """Let strategies add to and shape the gradients, which are clipped already."""
        self._at_work().before(optimizer)

    def on_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        optimizer: torch.optim.Optimizer,
        **given: Any,
    ) -> None:
        """Let strategies put values right, unless the step was skipped (float16 with gradients that are not finite)."""
        if not (isinstance(optimizer, AcceleratedOptimizer) and optimizer.step_was_skipped):
            self._at_work().after(optimizer)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        """Write the state of the strategies into the Trainer's checkpoint."""
        if state.is_world_process_zero:
            write_file(_file(args, state), save_tensors(self._at_work().state()))

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        train_dataloader: Any,
        **given: Any,
    ) -> None:
        """End the task: strategies may look back at its data, batch by batch as the Trainer loads them."""
        data = train_dataloader.dataset
        self._at_work().end_task(train_dataloader, rows=len(data) if isinstance(data, Sized) else None)

    def _at_work(self) -> Hooks:
        if self.hooks is None:
            raise UsageError("training has not begun; give this callback to a Trainer and call train()")
        return self.hooks


def _refuse_unfit(args: TrainingArguments) -> None:
    """Refuse settings under which the parameters or gradients at the hooks are not what they seem."""
    if args.deepspeed or args.fsdp:
        raise ConflictError(
            "strategies and a model cut over processes (deepspeed, fsdp): each process sees a part of every parameter; "
            "train without, or use rankwise.run with train.shard_base"
        )
    if args.fp16 and not args.max_grad_norm:
        raise ConflictError("strategies, fp16 and max_grad_norm = 0: gradients are still scaled; use bf16 or clip")


def _file(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(str(args.output_dir)) / f"checkpoint-{state.global_step}" / FILE


def _read(args: TrainingArguments, state: TrainerState) -> dict[str, Tensor]:
    path = _file(args, state)
    if not path.is_file():
        raise StorageError(
            f"{path}: training goes on from a checkpoint, but the strategies' state is not there; resume from a "
            "checkpoint in output_dir that was written with this callback"
        )
    return load_tensors(path)
