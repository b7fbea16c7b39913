"""MELoRA: mini LoRAs side by side on the diagonal."""

from __future__ import annotations

import pytest
import torch
from shapes import acts_as, drawn, layer, only, rank_of, tensors, update

from rankwise.adapters import Change, adapter_of, grow
from rankwise.api import adapt
from rankwise.errors import UsageError


def test_the_update_is_block_diagonal_and_acts_as_that_matrix():
    model = drawn("melora", 12, 18, 6, scale=0.5, form={"groups": 3})
    t = tensors(model)
    assert t["A"].shape == (6, 4) and t["B"].shape == (6, 6)
    minis = [t["B"][:, i : i + 2] @ t["A"][i : i + 2] for i in (0, 2, 4)]
    wanted = 0.5 * torch.block_diag(*minis)
    torch.testing.assert_close(update(model), wanted)
    assert acts_as(model, wanted) and rank_of(wanted) == 6


def test_it_has_the_rank_of_a_lora_for_a_share_of_its_parameters():
    ours, plain = (adapt(layer(12, 18), method, rank=6) for method in ("melora", "lora"))
    learns = [sum(p.numel() for p in model.parameters() if p.requires_grad) for model in (ours, plain)]
    assert learns[0] == learns[1] / 2


def test_blocks_add_up_and_convert_to_a_lora_of_the_total_rank():
    model = drawn("melora", 12, 18, 4, blocks=2)
    t = tensors(model)
    parts = [
        torch.block_diag(t["B"][:, i : i + 2] @ t["A"][i : i + 2], t["B"][:, i + 2 : i + 4] @ t["A"][i + 2 : i + 4])
        for i in (0, 4)
    ]
    torch.testing.assert_close(update(model), parts[0] + parts[1])
    site, bank = only(model)
    a, b, scale = adapter_of(model).branch.plain(bank.view(), site)
    assert a.shape == (8, 12) and b.shape == (18, 8)
    torch.testing.assert_close(scale * b @ a, update(model))


def test_ranks_keep_their_mini_lora_when_others_go():
    model = drawn("melora", 12, 18, 4)
    t = tensors(model)
    grow(model, [Change("select", index=(1, 3))], 0)
    wanted = torch.block_diag(t["B"][:, 1:2] @ t["A"][1:2], t["B"][:, 3:] @ t["A"][3:])
    torch.testing.assert_close(update(model), wanted)
    assert acts_as(model, wanted)


def test_one_group_is_a_plain_lora():
    model = drawn("melora", 7, 5, 3, form={"groups": 1})
    t = tensors(model)
    torch.testing.assert_close(update(model), t["B"] @ t["A"])


@pytest.mark.parametrize(
    ("size", "rank", "form", "match"),
    [
        ((7, 12), 4, {}, "7 inputs and 12 outputs"),
        ((12, 7), 4, {}, "12 inputs and 7 outputs"),
        ((12, 12), 3, {}, "adapter.rank = 3 is no multiple"),
        ((12, 12), 4, {"groups": 0}, "groups = 0"),
    ],
)
def test_what_does_not_divide_is_refused(size, rank, form, match):
    with pytest.raises(UsageError, match=match):
        adapt(layer(*size), "melora", rank=rank, form=form)
