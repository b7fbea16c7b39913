"""Which modules are adapted: names, globs, layers, heads, fused projections; and their sizes."""

from __future__ import annotations

import pytest
import tiny
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from rankwise.adapters import Site, pick_sites
from rankwise.adapters.sites import ALGEBRAS, all_sites
from rankwise.errors import UsageError


def names(model: nn.Module, *args, **kwargs) -> list[str]:
    return [site.name for site in pick_sites(model, *args, **kwargs)]


def ends(found: list[str]) -> set[str]:
    return {name.rpartition(".")[2] for name in found}


def test_all_linear_on_llama_takes_every_projection_and_no_head():
    found = names(tiny.llama())
    assert ends(found) == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert len(found) == 14


def test_all_linear_on_gpt2_cuts_c_attn_into_q_k_v():
    sites = {site.name: site for site in pick_sites(tiny.gpt2())}
    assert len(sites) == 2 * (3 + 3)
    q, k, v = (sites[f"transformer.h.0.attn.c_attn.{part}"] for part in "qkv")
    assert (q.rows, k.rows, v.rows) == ((0, 12), (12, 24), (24, 36))
    assert {(s.path, s.kind, s.n_in, s.n_out, s.width) for s in (q, k, v)} == {
        ("transformer.h.0.attn.c_attn", "transposed", 12, 12, 36)
    }
    assert (sites["transformer.h.1.mlp.c_fc"].n_in, sites["transformer.h.1.mlp.c_fc"].n_out) == (12, 48)


@pytest.mark.parametrize(
    ("make", "count", "head"),
    [
        (tiny.bert, 2 * 6 + 1, "classifier"),
        (tiny.bert_mlm, 2 * 6 + 1, "decoder"),
        (tiny.vit, 2 * 6, "classifier"),
        (tiny.clip, 2 * 2 * 6 + 2, "lm_head"),
    ],
)
def test_all_linear_leaves_output_heads_out(make, count, head):
    found = names(make())
    assert len(found) == count
    assert head not in ends(found)


def test_a_head_is_left_out_with_everything_in_it():
    model = nn.ModuleDict({"body": nn.Linear(2, 2), "classifier": nn.Sequential(nn.Linear(2, 2))})
    assert names(model) == ["body"]
    assert names(model, "classifier.0") == ["classifier.0"]


def test_names_by_path_end_glob_and_part():
    model = tiny.gpt2()
    assert names(model, "transformer.h.1.mlp.c_fc") == ["transformer.h.1.mlp.c_fc"]
    assert names(model, ["mlp.c_fc"]) == ["transformer.h.0.mlp.c_fc", "transformer.h.1.mlp.c_fc"]
    assert names(model, "*.h.1.mlp.*") == ["transformer.h.1.mlp.c_fc", "transformer.h.1.mlp.c_proj"]
    assert names(model, "c_attn.q") == ["transformer.h.0.attn.c_attn.q", "transformer.h.1.attn.c_attn.q"]
    assert len(names(model, ["c_attn.q", "c_attn.v"])) == 4
    assert len(names(model, "c_attn")) == 6
    assert names(model, "lm_head") == ["lm_head"]


def test_an_end_starts_at_a_dot():
    assert names(nn.ModuleDict({"fc": nn.Linear(2, 2), "abfc": nn.Linear(2, 2)}), "fc") == ["fc"]


def test_regex_characters_are_plain_text():
    model = tiny.llama()
    for text in ("q_proj|k_proj", "q.proj", ".*q_proj$", "^model", "(q_proj)", "q_pro.", "q_proj+"):
        with pytest.raises(UsageError, match="matches no module"):
            pick_sites(model, text)


def test_layer_range_has_both_ends_and_exclude_takes_out():
    model = tiny.mlp(3, 3, 3, 3, 3)
    assert names(model, layers=[2, 4]) == ["2", "4"]
    assert {site.layer for site in pick_sites(tiny.llama(), layers=(1, 1))} == {1}
    found = names(tiny.llama(), exclude=["mlp.*", "o_proj", "*.mlp.*"][1:])
    assert ends(found) == {"q_proj", "k_proj", "v_proj"}
    assert ends(names(tiny.gpt2(), "c_attn", exclude=["c_attn.k"])) == {"q", "v"}


@pytest.mark.parametrize("wrong", [{"layers": [1]}, {"layers": [0, 1, 2]}])
def test_a_layer_range_is_two_numbers(wrong):
    with pytest.raises(UsageError, match="first and the last block"):
        pick_sites(tiny.llama(), **wrong)


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(UsageError, match="did you mean 'q_proj'"):
        pick_sites(tiny.llama(), ["v_proj", "q_prj"])
    with pytest.raises(UsageError, match="did you mean 'q_proj'"):
        pick_sites(tiny.llama(), "model.layers.0.self_attn.q_porj")
    with pytest.raises(UsageError, match="'mpl' matches no module"):
        pick_sites(tiny.llama(), exclude=["mpl"])


@pytest.mark.parametrize("choice", [{"sites": []}, {"layers": [7, 9]}, {"sites": "q_proj", "exclude": ["q_proj"]}])
def test_an_empty_choice_is_refused(choice):
    with pytest.raises(UsageError, match="no module is left"):
        pick_sites(tiny.llama(), **choice)


def test_convolutions_and_embeddings_only_by_name():
    model = tiny.mixed()
    assert names(model) == ["fc"]
    words, conv = pick_sites(model, ["words", "conv"])
    assert (words.kind, words.n_in, words.n_out) == ("embedding", 11, 6)
    assert (conv.kind, conv.n_in, conv.n_out, conv.kernel) == ("conv2d", 6, 5, (1, 3, 2))
    assert all(site.kind == "transposed" for site in pick_sites(tiny.gpt2()))


class Scaled(nn.Embedding):
    """As in Gemma: its output is no row of its weight."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input) * 3


@pytest.mark.parametrize(
    "module",
    [
        nn.Conv2d(4, 4, 3, groups=2),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
        Scaled(4, 4),
        nn.Embedding(4, 4, max_norm=1.0),
        nn.LayerNorm(4),
    ],
)
def test_what_is_no_plain_product_is_no_site(module):
    assert all_sites(nn.Sequential(module)) == ()


def test_modules_that_torch_reads_past_are_left_out():
    model = nn.TransformerEncoderLayer(4, 2, 8)
    assert names(model) == ["linear1", "linear2"]


@pytest.mark.parametrize(
    ("name", "module", "parts"),
    [
        ("c_attn", nn.Linear(6, 18), {"q": (0, 6), "k": (6, 12), "v": (12, 18)}),
        ("c_attn", Conv1D(12, 6), {}),  # keys and values of cross-attention: divisible by three, but no q
        ("in_proj", nn.Linear(6, 27), {}),
        ("qkv_proj", nn.Linear(6, 10), {"q": (0, 6), "k": (6, 8), "v": (8, 10)}),
        ("qkv_proj", nn.Linear(6, 6), {}),
        ("gate_up_proj", nn.Linear(6, 8), {"gate": (0, 4), "up": (4, 8)}),
        ("other", nn.Linear(6, 18), {}),
    ],
)
def test_fused_projections_are_cut_only_where_the_widths_fit(name, module, parts):
    sites = all_sites(nn.ModuleDict({name: module}))
    assert {s.name.rpartition(".")[2]: s.rows for s in sites} == (parts or {name: None})
    whole = all_sites(nn.ModuleDict({name: module}), cut=False)
    assert [s.rows for s in whole] == [None]


def test_sizes_do_not_come_from_the_weight():
    class Packed4Bit(nn.Linear):
        """As 4-bit bases do: the weight is one column of packed bytes."""

        def __init__(self) -> None:
            super().__init__(6, 4)
            self.weight = nn.Parameter(torch.zeros(12, 1, dtype=torch.uint8), requires_grad=False)

    assert all_sites(nn.Sequential(Packed4Bit())) == (Site("0", "0", "linear", 6, 4, None, (), 4),)


@pytest.mark.parametrize("kind", ["linear", "conv2d"])
def test_ranks_cut_off_a_longer_tensor_give_the_bits_they_give_alone(kind):
    """An appended block lies beside the others; where values lie decides which kernel a library takes."""
    rng = torch.Generator().manual_seed(0)
    alone, others = (torch.randn(2, 5, 5, 3, generator=rng) for _ in range(2))
    beside = torch.cat([alone, others], -1).split([3, 3], -1)[0]
    permuted = alone.movedim(-1, 1).contiguous().movedim(1, -1)
    b = torch.randn(7, 3, generator=rng)
    up = ALGEBRAS[kind].up
    assert torch.equal(up(beside, b), up(alone, b)) and torch.equal(up(permuted, b), up(alone, b))
