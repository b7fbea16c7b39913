"""A run that writes answers, taken up again after it was saved: scored, undone, merged; and a model's folder."""

from __future__ import annotations

import json
from pathlib import Path

import asked  # pyright: ignore[reportMissingImports]
import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedModel

import rankwise
from rankwise import saved
from rankwise.errors import UsageError
from rankwise.models import Answers, Backbone, load_backbone


@pytest.fixture(params=["gpt2", "t5"])
def base(request, writers) -> Path:
    """A tiny base with a language head."""
    return writers(request.param)


@pytest.fixture
def run(base, tmp_path) -> Path:
    """Two instruction tasks learnt on it."""
    return asked.learnt(base, tmp_path)


def losses(base: Backbone) -> torch.Tensor:
    assert base.language is not None
    batch = base.encode([("question : the cat sits answer :", "good")])
    known = {key: value for key, value in batch.items() if key in base.arguments}
    if base.language.form == "seq2seq":
        known["decoder_input_ids"] = known["input_ids"]
    with torch.no_grad():
        return base.module(**known).logits


def test_a_run_with_a_language_head_is_scored_undone_and_relearnt(run):
    results = json.loads((run / "results.json").read_text())
    assert rankwise.evaluate(run)["scores"] == results["matrix"][-1]
    adapter = (run / "adapter" / "adapter.safetensors").read_bytes()
    assert rankwise.undo(run)["undone"] == "two"
    assert [record["task"] for record in rankwise.log(run)] == ["one"]
    assert (run / "adapter" / "adapter.safetensors").read_bytes() != adapter
    assert rankwise.resume(run).results["matrix"] == results["matrix"]
    assert (run / "adapter" / "adapter.safetensors").read_bytes() == adapter


def test_a_run_with_a_language_head_merges_with_it(run, tmp_path, capfd):
    learnt, _ = saved.learnt(run)
    expected = losses(learnt)
    capfd.readouterr()
    saved.merge_saved(run, tmp_path / "m")
    assert capfd.readouterr().err == ""  # no bar of a library
    merged = load_backbone(str(tmp_path / "m"), answers=Answers(length=6))
    torch.testing.assert_close(losses(merged), expected, rtol=1e-5, atol=1e-5)
    plain = load_backbone(learnt.name, answers=Answers(length=6))
    assert not torch.allclose(losses(plain), expected, atol=1e-4)


def test_the_folder_of_an_adapter_stands_for_its_run(run, tmp_path):
    """Ours, and what leaves for PEFT: the base is loaded with its language head again."""
    expected = losses(saved.learnt(run)[0])
    saved.merge_saved(run / "adapter", tmp_path / "ours")
    saved.export_saved(run / "adapter", tmp_path / "peft")
    saved.merge_saved(tmp_path / "peft", tmp_path / "theirs")
    for name in ("ours", "theirs"):
        merged = load_backbone(str(tmp_path / name), answers=Answers(length=6))
        torch.testing.assert_close(losses(merged), expected, rtol=1e-5, atol=1e-5)


def test_a_base_with_a_language_head_that_was_trained_merges(base, tmp_path):
    run = asked.learnt(base, tmp_path, "finetune")
    expected = losses(saved.learnt(run)[0])
    for number, path in enumerate((run, run / "adapter")):
        saved.merge_saved(path, tmp_path / f"m{number}")
        assert torch.equal(losses(load_backbone(str(tmp_path / f"m{number}"), answers=Answers(length=6))), expected)


def whole(base: Path) -> PreTrainedModel:
    """The base as transformers loads it."""
    return (AutoModelForSeq2SeqLM if "t5" in base.name else AutoModelForCausalLM).from_pretrained(base)


def test_an_adapter_saved_in_python_merges_into_the_base_named(base, tmp_path):
    model = rankwise.adapt(whole(base), rank=2)
    rankwise.save(model, tmp_path / "saved")
    written = saved.merge_saved(tmp_path / "saved", tmp_path / "m", base=str(base))
    assert type(whole(base)) is type(load_backbone(written["out"], answers=Answers()).module)


@pytest.mark.parametrize("told", [True, False])
def test_what_peft_wrote_merges_into_a_base_with_a_language_head(base, tmp_path, told):
    """It says what task the base is for, or of what class it is."""
    task = "SEQ_2_SEQ_LM" if "t5" in base.name else "CAUSAL_LM"
    sites = ["q", "wi"] if "t5" in base.name else ["c_attn"]
    config = peft.LoraConfig(r=2, target_modules=sites, task_type=task if told else None, init_lora_weights=False)
    peft.get_peft_model(whole(base), config).save_pretrained(tmp_path / "peft")
    saved.merge_saved(tmp_path / "peft", tmp_path / "m")
    expected = load_backbone(str(base), answers=Answers())
    before = losses(expected)
    expected.module = peft.PeftModel.from_pretrained(expected.module, tmp_path / "peft").eval()
    merged = losses(load_backbone(str(tmp_path / "m"), answers=Answers()))
    torch.testing.assert_close(merged, losses(expected), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(merged, before, atol=1e-3)


def test_what_is_made_of_a_base_named_from_here_can_be_read_from_elsewhere(writers, tmp_path, monkeypatch):
    rankwise.save(rankwise.adapt(whole(writers("gpt2")), rank=2), tmp_path / "saved")
    monkeypatch.chdir(writers("gpt2").parent)
    saved.export_saved(tmp_path / "saved", tmp_path / "peft", base=writers("gpt2").name)
    monkeypatch.chdir(tmp_path)
    assert saved.merge_saved("peft", "m")["model"] == str(writers("gpt2"))


def test_a_folder_of_several_adapters_of_peft_is_refused_by_their_names(writers, tmp_path):
    config = peft.LoraConfig(r=2, target_modules=["c_attn"])
    model = peft.get_peft_model(whole(writers("gpt2")), config, adapter_name="de")
    model.add_adapter("fr", config)
    model.save_pretrained(tmp_path / "multi")
    with pytest.raises(UsageError, match=r"multi: holds PEFT adapters in folders \(de, fr\); name one, as .*multi/de"):
        rankwise.load(whole(writers("gpt2")), tmp_path / "multi")
    rankwise.load(whole(writers("gpt2")), tmp_path / "multi" / "de")


def test_what_is_not_a_model_of_transformers_is_not_written(tmp_path):
    from rankwise.surgery.plain import write_plain

    with pytest.raises(UsageError, match="Linear is no model of transformers"):
        write_plain(torch.nn.Linear(2, 2), None, tmp_path / "x", {})
    assert not (tmp_path / "x").exists()
