"""What every test may rely on: one thread, no network, and the folder of real data where there is one."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

# Set before anything imports torch: results are compared bit for bit, and that holds for one number of threads.
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "tests" / "common"))  # what tests of several folders share
NEEDS = {"qlora": "bitsandbytes"}
"""Method -> the package its defaults need."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is asked of a method whose extra is not installed."""
    for item in items:
        asked = set(item.name.partition("[")[2].removesuffix("]").split("-")) if "[" in item.name else set()
        for method, package in NEEDS.items():
            if method in asked and importlib.util.find_spec(package) is None:
                item.add_marker(pytest.mark.skip(reason=f"{package} (extra `quant`) is not installed"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data: RANKWISE_SHARED, else `shared` beside the clone; its tests skip where it is absent."""
    named = os.environ.get("RANKWISE_SHARED")
    folder = Path(named) if named else ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"no folder of real data at {folder} (set RANKWISE_SHARED to use another)")
    return folder


@pytest.fixture(scope="session")
def writers(tmp_path_factory) -> Callable[[str], Path]:
    """Folders of tiny random models of texts by kind (gpt2, llama, qwen, gemma, t5, bert), with a tokenizer of words.

    The tokenizer has no padding token; "." is its end of text for all but t5, whose prompts end with it too.
    """
    made: dict[str, Path] = {}

    def folder(kind: str) -> Path:
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp(kind)
            _write_language_model(kind, made[kind])
        return made[kind]

    return folder


TEXT = "? . the cat dog sits runs on a mat far away yes no question answer : good bad , red blue"
WORDS = {word: place for place, word in enumerate(TEXT.split())}


def _write_language_model(kind: str, folder: Path) -> None:
    import torch
    import transformers as t
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    size = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    common = {"vocab_size": len(WORDS), "bos_token_id": None, "eos_token_id": 1, "pad_token_id": None}
    llama = {**size, **common, "num_key_value_heads": 1, "max_position_embeddings": 64}
    t5 = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "decoder_start_token_id": 0}
    torch.manual_seed(11)
    model = {
        "gpt2": lambda: t.GPT2LMHeadModel(t.GPT2Config(n_positions=64, n_embd=16, n_layer=2, n_head=2, **common)),
        "llama": lambda: t.LlamaForCausalLM(t.LlamaConfig(**llama)),
        "qwen": lambda: t.Qwen3ForCausalLM(t.Qwen3Config(**llama, head_dim=8)),
        "gemma": lambda: t.GemmaForCausalLM(t.GemmaConfig(**{**llama, "head_dim": 8})),
        "bert": lambda: t.BertModel(t.BertConfig(vocab_size=len(WORDS), max_position_embeddings=64, **size)),
        "t5": lambda: t.T5ForConditionalGeneration(t.T5Config(**{**common, **t5, "pad_token_id": 0})),
    }[kind]()
    with torch.no_grad():
        for parameter in model.parameters():  # a fresh model says one word for ever: give it something to say
            parameter.add_(torch.randn(parameter.shape) * 0.5)
    model.save_pretrained(folder)
    words = Tokenizer(models.WordLevel(WORDS, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    if kind == "t5":
        words.post_processor = processors.TemplateProcessing(single="$A .", special_tokens=[(".", 1)])
    t.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?", eos_token=".").save_pretrained(folder)
