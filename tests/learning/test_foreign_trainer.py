"""Strategies on a `transformers.Trainer`: on a model adapted here, on a live PEFT model, over tasks and checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

import rankwise
from rankwise.errors import ConflictError, StorageError, UsageError
from rankwise.learning.trainer import FILE, losses_one_by_one

pytestmark = pytest.mark.filterwarnings("ignore")


def base() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        hidden_size=12,
        intermediate_size=20,
        vocab_size=29,
        max_position_embeddings=16,
    )
    return LlamaForCausalLM(config)


def adapted() -> nn.Module:
    return rankwise.adapt(base(), "lora", rank=2, sites=["q_proj", "v_proj"])


def with_peft() -> nn.Module:
    torch.manual_seed(1)
    return get_peft_model(base(), LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))


def rows(task: int, count: int = 8) -> Any:
    ids = torch.randint(1, 29, (count, 6), generator=torch.Generator().manual_seed(task))
    return [{"input_ids": row, "labels": row} for row in ids]


def train(model: nn.Module, callback: Any, path: Path, task: int = 1, resume: Any = None, **options: Any) -> Trainer:
    settings: dict[str, Any] = {
        "max_steps": 4,
        "per_device_train_batch_size": 4,
        "learning_rate": 0.05,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "logging_strategy": "no",
    }
    args = TrainingArguments(output_dir=str(path), **{**settings, **options})
    trainer = Trainer(model=model, args=args, train_dataset=rows(task), callbacks=[callback] if callback else None)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def values(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def distance(found: dict[str, Tensor], anchor: dict[str, Tensor]) -> float:
    return float(sum((found[name] - anchor[name]).square().sum() for name in anchor))


@pytest.mark.parametrize("make", [adapted, with_peft])
def test_two_tasks_on_a_trainer(made, tmp_path, make):
    """The second task strays less from the first with the penalty than without, and the base never moves."""
    strays = {}
    for factor in (0.0, 1e4):
        model = make()
        frozen = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
        callback = rankwise.LearningCallback("fisher", fisher={"factor": factor})
        train(model, callback, tmp_path, task=1)
        anchor = values(model)
        assert all(torch.equal(made["fisher"].anchors[name], anchor[name]) for name in anchor)
        train(model, callback, tmp_path, task=2)
        strays[factor] = distance(values(model), anchor)
        assert callback.hooks is not None and callback.hooks.step == 8 and len(callback.hooks.tasks) == 2
        assert made["fisher"].rows == [8, 8]
        assert all(torch.equal(p, frozen[n]) for n, p in model.named_parameters() if n in frozen)
    assert 0 < strays[1e4] < 0.7 * strays[0.0]


def test_without_effect_the_trainer_gives_its_own_bits(made, tmp_path):
    plain, hooked = adapted(), adapted()
    train(plain, None, tmp_path)
    train(hooked, rankwise.LearningCallback("probe", probe={"factor": 1.0}), tmp_path, max_grad_norm=1.0)
    clamped = {name: tensor.clamp(-0.5, 0.5) for name, tensor in values(plain).items()}
    assert all(torch.equal(tensor, clamped[name]) for name, tensor in values(hooked).items())


def test_the_penalty_is_that_of_a_loop_of_ones_own(made, tmp_path):
    """The Trainer and `rankwise.learning` on the same optimiser, batches and strategy end in the same values."""
    model = with_peft()
    callback = rankwise.LearningCallback("fisher", fisher={"factor": 10.0})
    options: dict[str, Any] = {"optim": "sgd", "lr_scheduler_type": "constant", "max_grad_norm": 0.0}
    whole = {"per_device_train_batch_size": 8, **options}
    for task in (1, 2):
        train(model, callback, tmp_path, task, **whole)
    other = with_peft()
    optimizer = torch.optim.SGD([p for p in other.parameters() if p.requires_grad], lr=0.05)
    fisher = {"factor": 10.0}
    with rankwise.learning(other, "fisher", optimizer=optimizer, losses=losses_one_by_one, fisher=fisher) as hooks:
        for task in (1, 2):
            ids = torch.stack([row["input_ids"] for row in rows(task)])
            other.train()
            for _ in range(4):
                optimizer.zero_grad()
                other(input_ids=ids, labels=ids).loss.backward()
                optimizer.step()
            hooks.end_task([{"input_ids": ids, "labels": ids}])
            if task == 1:
                hooks.begin_task()
    expected = values(other)
    assert all(torch.allclose(tensor, expected[name], rtol=1e-4, atol=1e-5) for name, tensor in values(model).items())


def test_gradients_are_clipped_before_they_are_shaped(made, tmp_path):
    norms: list[float] = []

    def watch(host: Any, step: int) -> None:
        norms.append(float(torch.stack([p.grad.norm() for p in host.live().values() if p.grad is not None]).norm()))

    callback = rankwise.LearningCallback("probe")
    model = adapted()
    train(model, callback, tmp_path, max_steps=1, max_grad_norm=1e-3)
    made["probe"].shape = watch
    train(model, callback, tmp_path, max_steps=3, max_grad_norm=1e-3)
    assert len(norms) == 3 and max(norms) <= 1.01e-3


@pytest.mark.parametrize("make", [adapted, with_peft])
def test_a_resumed_task_ends_in_the_same_bits(made, tmp_path, make):
    saving: dict[str, Any] = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}

    def two_tasks(second: Any) -> nn.Module:
        model, callback = make(), rankwise.LearningCallback("fisher", fisher={"factor": 100.0})
        train(model, callback, tmp_path / "first")
        second(model, callback)
        return model

    def whole(model: nn.Module, callback: Any) -> None:
        train(model, callback, tmp_path / "second", 2, **saving)

    expected = values(two_tasks(whole))
    model, callback = make(), rankwise.LearningCallback("fisher", fisher={"factor": 100.0})
    checkpoint = tmp_path / "second" / "checkpoint-2"
    assert (checkpoint / FILE).is_file()
    train(model, callback, tmp_path / "second", 2, resume=str(checkpoint), **saving)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in values(model).items())
    (checkpoint / FILE).unlink()
    with pytest.raises(StorageError, match=r"checkpoint-2.*the strategies' state is not there"):
        again = rankwise.LearningCallback("fisher")
        train(make(), again, tmp_path / "second", 2, resume=str(checkpoint), **saving)


def test_ewc_on_a_live_peft_model(tmp_path):
    strays = {}
    for strength in (0.0, 1e5):
        model, callback = with_peft(), rankwise.LearningCallback("ewc", ewc={"strength": strength, "samples": 6})
        train(model, callback, tmp_path, task=1)
        anchor = values(model)
        train(model, callback, tmp_path, task=2)
        strays[strength] = distance(values(model), anchor)
    assert 0 < strays[1e5] < 0.7 * strays[0.0]


def test_a_live_peft_model_leaves_as_peft_writes_it(made, tmp_path):
    model: Any = with_peft()
    train(model, rankwise.LearningCallback("average"), tmp_path)
    assert {name.rsplit(".", 3)[1] for name in values(model)} == {"lora_A", "lora_B"}
    model.save_pretrained(str(tmp_path / "out"))
    ids = torch.stack([row["input_ids"] for row in rows(3)])
    loaded, ours = PeftModel.from_pretrained(base(), str(tmp_path / "out")), rankwise.load(base(), tmp_path / "out")
    expected = model.eval()(input_ids=ids).logits
    assert torch.equal(loaded.eval()(input_ids=ids).logits, expected)
    assert torch.equal(ours.eval()(input_ids=ids).logits, expected)


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        (["replay"], {}, "'replay' brings batches of its own"),
        (["ruler"], {}, "'ruler' takes over the rule of the optimiser"),
        (["factors"], {}, "'factors' works on the factors of an adapter"),
    ],
)
def test_what_a_trainer_cannot_give_is_refused(made, tmp_path, names, options, message):
    with pytest.raises(ConflictError, match=message):
        train(with_peft(), rankwise.LearningCallback(*names), tmp_path, **options)


def test_one_callback_serves_one_model(made, tmp_path):
    callback = rankwise.LearningCallback("probe")
    with pytest.raises(UsageError, match="training has not begun"):
        callback.on_optimizer_step(*[None] * 3, optimizer=None)  # pyright: ignore[reportArgumentType]
    train(adapted(), callback, tmp_path, max_steps=1)
    with pytest.raises(UsageError, match="has begun on another model"):
        train(adapted(), callback, tmp_path, max_steps=1)
