"""Errors of bases, in full: each says what is wrong, where, and what to do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import MambaConfig, MambaForCausalLM, Wav2Vec2Config, Wav2Vec2Model

from rankwise.errors import DataError, UsageError
from rankwise.models import load_backbone
from rankwise.models.checks import check_folder
from rankwise.models.hub import read_tokenizer
from rankwise.models.images import pixels
from rankwise.models.language import Answers
from rankwise.models.quantised import quantise
from rankwise.models.sources import find, image_settings

FORM = {"size": 4, "mean": [0.5] * 3, "std": [0.5] * 3}


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (torch.zeros(2, 3, 3), "images are torch.float32 [2, 3, 3]; give uint8"),
        (np.zeros((2, 3, 3, 4), np.uint8), "images are torch.uint8 [2, 3, 3, 4]; give uint8"),
        ([np.zeros((3, 3), np.uint8), "a.png"], "image 1 is str; give uint8"),
        ([torch.zeros(3, 3)], "image 0 is torch.float32 [3, 3]; give uint8"),
    ],
)
def test_pictures(images: Any, said: str) -> None:
    with pytest.raises(DataError) as caught:
        pixels(images, **FORM)
    assert said in str(caught.value)


def test_texts_and_batches(writers: Callable[[str], Path]) -> None:
    base = load_backbone(str(writers("bert")))
    with pytest.raises(DataError, match="takes a list of strings or of pairs of strings, not one str"):
        base.encode("a cat")
    with pytest.raises(DataError, match="text 1 is a int of 1; give strings only, or pairs of two strings only"):
        base.encode(["a cat", 3])
    said = r"takes \(.*input_ids.*\); the batch has \['pixels'\]; use encode\(\)"
    with pytest.raises(DataError, match=said):
        base.features({"pixels": torch.zeros(1)})


@pytest.mark.parametrize(
    ("file", "change", "said"),
    [
        ("config.json", {"_attn_implementation": "evil/kernel"}, "= 'evil/kernel' asks for code from elsewhere; take"),
        ("config.json", {"dtype": "load"}, "dtype = 'load'; known: float32, float16, bfloat16, float64"),
        ("model.safetensors.index.json", {"weight_map": 3}, "'weight_map' must map tensors to files; get an intact"),
        ("model.safetensors.index.json", {"weight_map": {"a": "b.bin"}}, "names 'b.bin', which is no *.safetensors"),
    ],
)
def test_folders(writers: Callable[[str], Path], tmp_path: Path, file: str, change: dict[str, Any], said: str) -> None:
    folder = Path(shutil.copytree(writers("bert"), tmp_path / "base"))
    old = json.loads((folder / file).read_text()) if (folder / file).exists() else {}
    (folder / file).write_text(json.dumps(old | change))
    with pytest.raises(DataError) as caught:
        check_folder(folder)
    assert str(caught.value).startswith(f"{folder / file}: ") and said in str(caught.value)


def test_what_lies_beside_the_weights(writers: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no tokenizer lies there; save it there with tokenizer.save_pretrained"):
        read_tokenizer(tmp_path, trust_remote_code=False)
    with pytest.raises(DataError, match=r"config.json: image_size \[8, 8\] is not one number; take a base of square"):
        image_settings(tmp_path, {"image_size": [8, 8]})
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(DataError, match=r"preprocessor_config.json: not JSON \(.*\); get an undamaged copy"):
        image_settings(tmp_path, {})
    with pytest.raises(DataError, match=r"objective.end = 'catt' is no token; did you mean 'cat'\?"):
        load_backbone(str(writers("gpt2")), answers=Answers(end="catt"))


def test_a_decoder_that_cannot_start(writers: Callable[[str], Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(writers("t5"), tmp_path / "t5"))
    config = json.loads((folder / "config.json").read_text())
    config |= {"decoder_start_token_id": None, "pad_token_id": None}
    (folder / "config.json").write_text(json.dumps(config))
    said = "no token starts the decoder; name one as decoder_start_token_id in config.json"
    with pytest.raises(DataError, match=said):
        load_backbone(str(folder), answers=Answers())


def test_names_and_kinds() -> None:
    said = r"base 'no/base': offline, and not in the local cache \(\w+\); download it once with a connection"
    with pytest.raises(DataError, match=said):
        find("no/base", None, False)
    with pytest.raises(UsageError, match=r"model.quantize = 'nf5': no such kind; did you mean 'nf4'\?"):
        quantise(nn.Sequential(nn.Linear(2, 2)), "nf5")


def test_a_base_that_hears(tmp_path: Path) -> None:
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    few = {"conv_dim": (8,) * 7, "num_conv_pos_embedding_groups": 2}
    Wav2Vec2Model(Wav2Vec2Config(**sizes, **few)).save_pretrained(tmp_path)
    with pytest.raises(DataError, match="its inputs are 'input_values'; a base reads images or text"):
        load_backbone(str(tmp_path))


def test_a_language_model_without_a_cache_of_keys(writers: Callable[[str], Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(writers("gpt2"), tmp_path / "mamba"))
    (folder / "model.safetensors").unlink()
    vocabulary = json.loads((folder / "config.json").read_text())["vocab_size"]
    config = MambaConfig(vocab_size=vocabulary, hidden_size=8, num_hidden_layers=1, state_size=4)
    MambaForCausalLM(config).save_pretrained(folder)
    with pytest.raises(DataError, match="MambaForCausalLM takes no past_key_values; take another language model"):
        load_backbone(str(folder), answers=Answers(length=4))
