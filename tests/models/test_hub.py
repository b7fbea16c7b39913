"""Every kind of encoder from a folder: features, padding, frozen weights; and every kind of bad folder refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertModel,
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    GPT2Config,
    GPT2Model,
    LlamaConfig,
    LlamaModel,
    PreTrainedTokenizerFast,
    ResNetConfig,
    ResNetModel,
    T5Config,
    T5Model,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)

from rankwise.errors import DataError, UsageError
from rankwise.models import Backbone, load_backbone

WIDTH = 16
SMALL = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
SEEING = {**SMALL, "image_size": 16, "patch_size": 8}
VOCABULARY = ["[UNK]", "[PAD]", "the", "cat", "dog", "sits", "runs", "on", "a", "mat", "far", "away"]
WORDS = {word: place for place, word in enumerate(VOCABULARY)}
TEXTS = ["the cat sits on a mat", "the dog runs", "", "a dog runs far away on a mat far away"]


def bert_config() -> BertConfig:
    return BertConfig(vocab_size=12, max_position_embeddings=32, **SMALL)


def vision_config() -> CLIPVisionConfig:
    return CLIPVisionConfig(**SEEING)


BUILD = {
    "bert": lambda: BertModel(bert_config()),
    "gpt2": lambda: GPT2Model(GPT2Config(vocab_size=12, n_positions=32, n_embd=WIDTH, n_layer=2, n_head=2)),
    "llama": lambda: LlamaModel(LlamaConfig(vocab_size=12, max_position_embeddings=32, **SMALL)),
    "vit": lambda: ViTModel(ViTConfig(**SEEING)),
    "clip": lambda: CLIPVisionModel(vision_config()),
    "resnet": lambda: ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, WIDTH], depths=[1, 1])),
}


def save(kind: str, folder: Path) -> Path:
    """Write a random model of this kind, and what reads its inputs."""
    torch.manual_seed(3)
    model = BUILD[kind]()
    model.save_pretrained(folder)
    words = Tokenizer(WordLevel(WORDS, unk_token="[UNK]"))
    words.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    return {kind: save(kind, tmp_path_factory.mktemp(kind)) for kind in BUILD}


def features(backbone: Backbone, inputs) -> torch.Tensor:
    with torch.no_grad():
        return backbone.features(backbone.encode(inputs))


def images(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", BUILD)
def test_load_gives_a_frozen_float32_base_and_draws_nothing(folders, kind):
    torch.manual_seed(5)
    want = torch.rand(3)
    torch.manual_seed(5)
    backbone = load_backbone(str(folders[kind]))
    assert torch.equal(torch.rand(3), want)
    assert backbone.dim == WIDTH and not backbone.module.training
    assert all(p.dtype == torch.float32 and not p.requires_grad for p in backbone.module.parameters())
    assert backbone.fingerprint == load_backbone(str(folders[kind])).fingerprint


@pytest.mark.parametrize("kind", BUILD)
def test_every_weight_is_that_of_the_file(folders, kind):
    stored = load_file(folders[kind] / "model.safetensors")
    loaded = load_backbone(str(folders[kind])).module.state_dict()
    assert loaded
    for name, tensor in loaded.items():
        twin = next((key for key in (name, f"vision_model.{name}") if key in stored), None)
        if twin is not None:
            assert torch.equal(stored[twin], tensor), name
    assert sum(t.numel() for t in loaded.values()) >= 0.7 * sum(t.numel() for t in stored.values())


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama"])
def test_text_features_do_not_depend_on_padding(folders, kind):
    backbone = load_backbone(str(folders[kind]))
    together = features(backbone, TEXTS)
    alone = torch.cat([features(backbone, [text]) for text in TEXTS])
    assert together.shape == (4, WIDTH)
    assert torch.allclose(together, alone, atol=1e-5)
    assert (together[0] - together[1]).abs().max() > 1e-3


def test_text_poolings_are_what_they_say(folders):
    bert, gpt2 = str(folders["bert"]), str(folders["gpt2"])
    backbone = load_backbone(bert)
    batch = backbone.encode(TEXTS[:2])
    with torch.no_grad():
        states = backbone.module(**batch).last_hidden_state
    assert torch.allclose(features(backbone, TEXTS[:2])[1], states[1, :3].mean(0), atol=1e-6)
    assert torch.allclose(features(load_backbone(bert, pooling="cls"), TEXTS[:2]), states[:, 0], atol=1e-6)
    assert torch.allclose(features(load_backbone(bert, pooling="last"), TEXTS[:2])[1], states[1, 2], atol=1e-6)
    auto, last = features(load_backbone(gpt2), TEXTS), features(load_backbone(gpt2, pooling="last"), TEXTS)
    assert torch.equal(auto, last) and not torch.equal(auto, features(load_backbone(gpt2, pooling="mean"), TEXTS))


def test_max_length_cuts_and_never_passes_the_positions_of_the_model(folders):
    short = load_backbone(str(folders["bert"]), max_length=2)
    assert torch.allclose(features(short, ["the cat sits"]), features(short, ["the cat"]), atol=1e-6)
    long = load_backbone(str(folders["bert"]), max_length=512).encode(["the cat " * 100])
    assert long["input_ids"].shape == (1, 32)


def test_vision_poolings_are_what_they_say(folders):
    x = images(3, 20, 20, 3)
    vit = load_backbone(str(folders["vit"]))
    with torch.no_grad():
        states = vit.module(**vit.encode(x)).last_hidden_state
    assert vit.modality == "image" and states.shape[1] == 5
    assert torch.allclose(features(vit, x), states[:, 0] + states[:, 1:].mean(1), atol=1e-6)
    assert torch.allclose(features(load_backbone(str(folders["vit"]), pooling="cls"), x), states[:, 0], atol=1e-6)
    clip = load_backbone(str(folders["clip"]))
    with torch.no_grad():
        assert torch.allclose(features(clip, x), clip.module(**clip.encode(x)).pooler_output, atol=1e-6)


@pytest.mark.parametrize("kind", ["vit", "clip"])
def test_lists_and_tensors_give_equal_batches(folders, kind):
    backbone, x = load_backbone(str(folders[kind])), images(4, 20, 20)
    assert torch.equal(backbone.encode(x)["pixel_values"], backbone.encode(list(x))["pixel_values"])


def test_the_processor_file_gives_mean_and_std(folders, tmp_path):
    folder = Path(shutil.copytree(folders["vit"], tmp_path / "vit"))
    values = {"image_mean": [0.1, 0.2, 0.3], "image_std": [1.0, 1.0, 1.0], "size": {"height": 16, "width": 16}}
    (folder / "preprocessor_config.json").write_text(json.dumps(values))
    black = load_backbone(str(folder)).encode(torch.zeros(1, 16, 16, dtype=torch.uint8))["pixel_values"]
    assert torch.allclose(black[0, :, 0, 0], torch.tensor([-0.1, -0.2, -0.3]))


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_damaged_processor_file_is_refused(vit, text):
    (vit / "preprocessor_config.json").write_text(text)
    with pytest.raises(DataError, match="preprocessor_config.json"):
        load_backbone(str(vit))


def test_heads_and_poolers_are_left_out(tmp_path):
    torch.manual_seed(0)
    BertForMaskedLM(bert_config()).save_pretrained(tmp_path / "mlm")  # this file holds no pooler at all
    save("bert", tmp_path / "plain")
    shutil.copy(tmp_path / "plain" / "tokenizer.json", tmp_path / "mlm")
    shutil.copy(tmp_path / "plain" / "tokenizer_config.json", tmp_path / "mlm")
    backbone = load_backbone(str(tmp_path / "mlm"))
    assert backbone.fingerprint == load_backbone(str(tmp_path / "mlm")).fingerprint
    ViTForImageClassification(ViTConfig(**SEEING)).save_pretrained(tmp_path / "classifier")
    vit = load_backbone(str(tmp_path / "classifier"))
    names = [name for model in (backbone, vit) for name, _ in model.module.named_parameters()]
    assert not [name for name in names if "pooler" in name or "classifier" in name or "cls." in name]


def test_the_vision_tower_of_a_whole_clip(tmp_path):
    torch.manual_seed(0)
    text = {**SMALL, "vocab_size": 12, "max_position_embeddings": 8, "eos_token_id": 1}
    whole = CLIPModel(CLIPConfig(text_config=text, vision_config=vision_config().to_dict(), projection_dim=8)).eval()
    whole.save_pretrained(tmp_path)
    backbone, x = load_backbone(str(tmp_path)), images(2, 16, 16, 3)
    with torch.no_grad():
        want = whole.vision_model(**backbone.encode(x)).pooler_output
    assert backbone.dim == WIDTH and torch.allclose(features(backbone, x), want, atol=1e-6)


@pytest.fixture
def vit(folders, tmp_path) -> Path:
    """A folder of its own, to spoil."""
    return Path(shutil.copytree(folders["vit"], tmp_path / "spoilt"))


def test_truncated_and_altered_files_are_refused(vit):
    file = vit / "model.safetensors"
    whole = file.read_bytes()
    for bytes_ in (whole[:-100], whole[:50], b"\xff" * 8 + whole[8:], whole[:20] + b"\0" * 40 + whole[60:], b""):
        file.write_bytes(bytes_)
        with pytest.raises(DataError, match=r"spoilt/model.safetensors"):
            load_backbone(str(vit))


def test_missing_misshapen_and_not_finite_weights_are_refused_by_name(vit):
    file = vit / "model.safetensors"
    tensors = load_file(file)
    name = next(key for key in tensors if key.endswith("fc1.weight") or key.endswith("intermediate.dense.weight"))
    save_file({key: value for key, value in tensors.items() if key != name}, file, metadata={"format": "pt"})
    with pytest.raises(DataError, match=r"lacks weights of ViTModel: layers\.\d+\.mlp\.fc1\.weight"):
        load_backbone(str(vit))
    save_file({**tensors, name: tensors[name][:3].clone()}, file, metadata={"format": "pt"})
    with pytest.raises(DataError, match=str(vit)):
        load_backbone(str(vit))
    save_file({**tensors, name: torch.full_like(tensors[name], float("inf"))}, file, metadata={"format": "pt"})
    with pytest.raises(DataError, match="not finite"):
        load_backbone(str(vit))


def test_a_pickle_is_never_read(vit):
    (vit / "model.safetensors").unlink()
    (vit / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(DataError, match="pytorch_model.bin, a pickle"):
        load_backbone(str(vit))


def test_an_adapter_beside_the_weights_is_refused(vit):
    (vit / "adapter_config.json").write_text('{"base_model_name_or_path": "elsewhere"}')
    with pytest.raises(DataError, match="adapter_config.json: an adapter"):
        load_backbone(str(vit))


@pytest.mark.parametrize("config", ["{", "[]", '{"model_type": "no_such_type"}', "{}"])
def test_bad_configurations_are_refused(vit, config):
    (vit / "config.json").write_text(config)
    with pytest.raises(DataError, match="config.json"):
        load_backbone(str(vit))


def test_code_in_the_folder_does_not_run(vit):
    config = json.loads((vit / "config.json").read_text())
    config |= {"model_type": "odd", "auto_map": {"AutoConfig": "odd.OddConfig", "AutoModel": "odd.Odd"}}
    (vit / "config.json").write_text(json.dumps(config))
    (vit / "odd.py").write_text(f"open({str(vit / 'ran')!r}, 'w').close()\n")
    with pytest.raises(DataError, match="trust_remote_code"):
        load_backbone(str(vit))
    assert not (vit / "ran").exists()


def test_encoder_decoders_and_missing_tokenizers_are_refused(tmp_path, folders):
    t5 = T5Config(vocab_size=12, d_model=16, d_ff=16, d_kv=8, num_layers=1, num_heads=2)
    T5Model(t5).save_pretrained(tmp_path / "t5")
    with pytest.raises(DataError, match="t5"):
        load_backbone(str(tmp_path / "t5"))
    bert = Path(shutil.copytree(folders["bert"], tmp_path / "bert"))
    (bert / "tokenizer.json").unlink()
    (bert / "tokenizer_config.json").unlink()
    with pytest.raises(DataError, match="tokenizer"):
        load_backbone(str(bert))


def test_names_that_lead_nowhere(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DataError, match="no such folder"):
        load_backbone(str(tmp_path / "nothing"))
    with pytest.raises(DataError, match="offline, and not in the local cache"):
        load_backbone("nobody/no-such-model")
    with pytest.raises(DataError, match=r"no \*.safetensors"):
        load_backbone(str(tmp_path))
    with pytest.raises(UsageError, match="did you mean 'embedded:vit'"):
        load_backbone("embeded:vit")
