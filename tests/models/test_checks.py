"""What is looked over before a library reads a base: honest ones of many families pass, in 4 bits too; lies do not."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as t
from safetensors.torch import load_file, save_file

from rankwise.errors import DataError
from rankwise.models import load_backbone
from rankwise.models.checks import Explained, check_folder

BNB = pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="the extra `quant` is not installed")
TEXT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "vocab_size": 40}
LLAMA = {**TEXT, "num_key_value_heads": 1, "max_position_embeddings": 32, "head_dim": 8, "pad_token_id": 0}
PICTURES = {**TEXT, "image_size": 16, "patch_size": 8}
EXPERTS = {"num_local_experts": 2, "num_experts_per_tok": 1}
MIXTURE = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 8}
ENDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
T5 = {**ENDS, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2, "vocab_size": 40}
BART = {
    **{"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "vocab_size": 40, "max_position_embeddings": 32},
    **{"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24},
    **{**ENDS, "forced_eos_token_id": None},
}
STAGES = {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2}
BERT = {k: v for k, v in TEXT.items() if k != "vocab_size"} | {"vocab_size": 40, "max_position_embeddings": 32}
TOWERS = {"text_config": {**TEXT, "vocab_size": 100, "max_position_embeddings": 32}, "vision_config": PICTURES}

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": LLAMA,
    "qwen2": LLAMA,
    "qwen3": LLAMA,
    "qwen3_moe": {**LLAMA, **MIXTURE},
    "mistral": LLAMA,
    "mixtral": {**LLAMA, **EXPERTS},
    "gemma": LLAMA,
    "gemma2": LLAMA,
    "gemma3_text": LLAMA,
    "phi": LLAMA,
    "phi3": LLAMA,
    "olmo2": LLAMA,
    "stablelm": LLAMA,
    "starcoder2": LLAMA,
    "cohere": LLAMA,
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32, "vocab_size": 40},
    "gpt_neo": {**TEXT, "num_layers": 2, "num_heads": 2, "attention_types": [[["global", "local"], 1]]},
    "gpt_neox": BERT,
    "gptj": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32, "vocab_size": 40, "rotary_dim": 4},
    "opt": {**BERT, "ffn_dim": 24, "word_embed_proj_dim": 8},
    "bloom": {"hidden_size": 16, "n_layer": 2, "n_head": 2, "vocab_size": 40},
    "falcon": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 40},
    "mamba": {"hidden_size": 16, "num_hidden_layers": 2, "vocab_size": 40, "state_size": 4},
    "bert": BERT,
    "roberta": BERT,
    "distilbert": {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24, "vocab_size": 40},
    "electra": {**BERT, "embedding_size": 8},
    "deberta-v2": BERT,
    "albert": {**BERT, "num_hidden_layers": 12, "embedding_size": 8},
    "mpnet": BERT,
    "xlm-roberta": BERT,
    "modernbert": {**BERT, **ENDS, "cls_token_id": 1, "sep_token_id": 2},
    "lxmert": {**TEXT, "l_layers": 2, "x_layers": 1, "r_layers": 1, "visual_feat_dim": 8},
    "t5": T5,
    "mt5": T5,
    "bart": BART,
    "mbart": BART,
    "pegasus": BART,
    "vit": PICTURES,
    "deit": PICTURES,
    "beit": PICTURES,
    "dinov2": {**PICTURES, "mlp_ratio": 2},
    "siglip_vision_model": PICTURES,
    "clip_vision_model": PICTURES,
    "clip": TOWERS,
    "swin": {
        "embed_dim": 8,
        "depths": [1, 1],
        "num_heads": [1, 2],
        "image_size": 32,
        "patch_size": 4,
        "window_size": 4,
    },
    "convnext": STAGES,
    "resnet": {**STAGES, "embedding_size": 8, "layer_type": "basic"},
}
"""Kinds of model as config.json names them, each as small as it goes."""


@pytest.mark.parametrize("kind", FAMILIES)
def test_an_honest_base_is_let_through(kind: str, tmp_path: Path) -> None:
    config = t.AutoConfig.for_model(kind, **{k: v for k, v in FAMILIES[kind].items() if k != "model_type"})
    t.AutoModel.from_config(config).save_pretrained(tmp_path)
    check_folder(tmp_path)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_a_part_of_a_base_may_leave_the_sizes_of_the_others(kind: str, tmp_path: Path) -> None:
    """A head on the tower that sees: the words of the other tower are in the configuration alone."""
    model = t.AutoModelForImageClassification.from_config(t.AutoConfig.for_model(kind, **TOWERS))
    model.save_pretrained(tmp_path)
    check_folder(tmp_path)


def changed(folder: Path, **values: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    t.BertModel(t.BertConfig(**BERT)).save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "values",
    [
        {"vocab_size": 10**6},
        {"hidden_size": 41},
        {"hidden_size": 16.5},
        {"hidden_size": float("inf")},
        {"num_hidden_layers": {"a": 1, "b": 10**6}},
        {"num_hidden_layers": 10**6},
        {"intermediate_size": [24, 10**6]},
        {"max_position_embeddings": 10**9},
        {"vocab_size": "40"},
    ],
)
def test_sizes_that_lie_are_refused(bert: Path, values: dict[str, Any]) -> None:
    check_folder(bert)
    changed(bert, **values)
    with pytest.raises(DataError, match=r"config\.json"):
        check_folder(bert)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"quant_method": "gptq", "bits": 4}, "quantised by 'gptq'"),
        ({"quant_method": "awq"}, "quantised by 'awq'"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": False, "load_in_8bit": True}, "load_in_4bit = False"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "fp4"}, "quant_type = 'fp4'"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "quant_type = None"),
        (3, "quantised by '3'"),
    ],
)
def test_other_quantised_weights_are_refused_by_name(bert: Path, settings: Any, said: str) -> None:
    changed(bert, quantization_config=settings)
    with pytest.raises(DataError, match=rf'{said}.*not read; take the whole weights.*model.quantize = "nf4"'):
        check_folder(bert)


NF4 = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}


@BNB
@pytest.mark.parametrize(
    "more",
    [{}, {"llm_int8_skip_modules": ["(a+)+$"]}, {"bnb_4bit_compute_dtype": "load"}, {"bnb_4bit_quant_storage": "int8"}],
)
def test_settings_of_4_bits_that_ask_for_more_are_refused(bert: Path, more: dict[str, Any]) -> None:
    changed(bert, quantization_config={**NF4, **more})
    with pytest.raises(DataError, match=r"config\.json"):
        check_folder(bert)


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory, writers: Callable[[str], Path]) -> dict[bool, Path]:
    """A llama in 4 bits as transformers writes it, its scales in 8 bits (True) or whole; with a tokenizer."""
    made = {}
    for double in (True, False):
        made[double] = tmp_path_factory.mktemp("four") / "base"
        asked = t.BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=double,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
        whole = writers("llama")
        model = t.AutoModelForCausalLM.from_pretrained(whole, quantization_config=asked, device_map="cpu")
        model.save_pretrained(made[double])
        for file in whole.glob("*token*"):
            shutil.copy(file, made[double])
    return made


@BNB
@pytest.mark.parametrize("double", [True, False])
def test_a_base_in_4_bits_on_disk_is_the_one_quantised_here(four, writers, double: bool) -> None:
    backbone, here = load_backbone(str(four[double])), load_backbone(str(writers("llama")), quantize="nf4")
    assert backbone.quantize == "nf4" and load_backbone(str(four[double]), quantize="nf4").quantize == "nf4"
    batch = backbone.encode(["the cat sits", "a dog"])
    assert all(not parameter.requires_grad for parameter in backbone.module.parameters())
    found, wanted = backbone.features(batch), here.features(batch)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, wanted, rtol=0, atol=0 if double else 2e-2)


@BNB
def test_it_learns_and_what_edits_the_base_is_refused(four, tmp_path: Path) -> None:
    import rankwise
    from rankwise.errors import ConflictError

    (tmp_path / "rows.csv").write_text("input,target\n" + "the cat,a\na dog,b\n" * 6)
    config = {
        "method": "lora",
        "model": {"name": str(four[True])},
        "stream": {"name": "x", "train": str(tmp_path / "rows.csv"), "validation": 0},
        "train": {"steps": 2, "batch_size": 4, "device": "cpu"},
    }
    done = rankwise.run(config, out=tmp_path / "run")
    assert json.loads((tmp_path / "run" / "adapter" / "adapter.json").read_text())["base"]["quantize"] == "nf4"
    assert rankwise.resume(tmp_path / "run").results["matrix"] == done.results["matrix"]
    with pytest.raises(ConflictError, match="quantize"):
        rankwise.run({**config, "method": "finetune"}, out=tmp_path / "other")


WEIGHT = "model.layers.0.mlp.down_proj.weight"
STATE = f"{WEIGHT}.quant_state.bitsandbytes__nf4"


def restated(tensors: dict[str, torch.Tensor], **values: Any) -> None:
    said = json.loads(bytes(tensors[STATE].tolist())) | values
    tensors[STATE] = torch.tensor(list(json.dumps(said).encode()), dtype=torch.uint8)


LIES: dict[str, Callable[[dict[str, torch.Tensor]], Any]] = {
    "a larger shape": lambda held: restated(held, shape=[4096, 4096]),
    "a negative shape": lambda held: restated(held, shape=[-16, -32]),
    "other blocks": lambda held: restated(held, blocksize=128),
    "no number of blocks": lambda held: restated(held, blocksize=1),
    "another kind": lambda held: restated(held, quant_type="fp4"),
    "a name for a dtype": lambda held: restated(held, dtype="load"),
    "an offset beyond numbers": lambda held: restated(held, nested_offset=1e999),
    "larger inner blocks": lambda held: restated(held, nested_blocksize=1),
    "fewer scales": lambda held: held.update({f"{WEIGHT}.absmax": held[f"{WEIGHT}.absmax"][:-1].clone()}),
    "scales of another dtype": lambda held: held.update({f"{WEIGHT}.absmax": held[f"{WEIGHT}.absmax"].to(torch.int8)}),
    "a shorter code": lambda held: held.update({f"{WEIGHT}.quant_map": held[f"{WEIGHT}.quant_map"][:-1].clone()}),
    "no scales": lambda held: held.pop(f"{WEIGHT}.absmax"),
    "one tensor more": lambda held: held.update({f"{WEIGHT}.canary": torch.zeros(2)}),
    "fewer values": lambda held: held.update({WEIGHT: held[WEIGHT][:-1].clone()}),
    "a record that is none": lambda held: held.update({STATE: torch.zeros(4, dtype=torch.uint8)}),
    "a record too long": lambda held: held.update({STATE: torch.zeros(1 << 13, dtype=torch.uint8)}),
}


@BNB
@pytest.mark.parametrize("name", LIES)
def test_what_lies_about_packed_weights_is_refused(four, tmp_path: Path, name: str) -> None:
    """The kernels of bitsandbytes believe these numbers, and would read past the end of the memory."""
    folder = shutil.copytree(four[True], tmp_path / "base")
    tensors = load_file(folder / "model.safetensors")
    LIES[name](tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(DataError, match="get an intact copy|it was truncated or altered"):
        check_folder(folder)


def test_only_what_libraries_raise_is_explained() -> None:
    from huggingface_hub.errors import StrictDataclassFieldValidationError

    for error in (
        KeyError("x"),
        RecursionError(),
        StrictDataclassFieldValidationError("a", ValueError("b")),
        Exception("t"),
    ):
        with (
            pytest.raises(DataError, match="it cannot be read .*; get another"),
            Explained("it cannot be read", "get another"),
        ):
            raise error
    for error in (MemoryError(), KeyboardInterrupt(), StopIteration(), DataError("ours")):
        with pytest.raises(type(error)) as met, Explained("it cannot be read", "get another"):
            raise error
        assert met.value is error
