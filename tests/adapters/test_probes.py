"""What sites read and add, kept an example a row."""

from __future__ import annotations

import torch
from torch import nn

from rankwise.adapters import Sink, banks_of, using
from rankwise.adapters.probes import mean_tokens, means_of
from rankwise.api import adapt
from rankwise.seeds import generator


def test_the_means_are_those_of_what_each_site_read_and_added():
    torch.manual_seed(0)
    model = adapt(nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4)), "lora", rank=2)
    for _, bank in banks_of(model).values():
        nn.init.normal_(bank.live["B"])
    x = torch.randn(3, 7, 6, generator=generator(0, "x"))
    read, added = (means_of(model, what, lambda: model(x)) for what in ("x", "delta"))
    with torch.no_grad():
        torch.testing.assert_close(read["0"], x.mean(1))
        torch.testing.assert_close(read["1"], model[0](x).mean(1))  # pyright: ignore[reportIndexIssue]
        with using(model, blocks=()):
            bare = model[0](x)  # pyright: ignore[reportIndexIssue]
        torch.testing.assert_close(added["0"], (model[0](x) - bare).mean(1))  # pyright: ignore[reportIndexIssue]
    assert not any(rows.requires_grad for rows in (*read.values(), *added.values()))


def test_a_channel_of_a_convolution_is_a_feature():
    model = adapt(nn.Sequential(nn.Conv2d(2, 5, 3)), "lora", rank=2, sites="0")
    x = torch.randn(3, 2, 8, 8, generator=generator(0, "x"))
    assert means_of(model, "delta", lambda: model(x))["0"].shape == (3, 5)


def test_padding_is_left_out_and_rows_without_tokens_stay_as_they_are():
    x, tokens = torch.randn(2, 3, 4, generator=generator(0, "x")), torch.tensor([[1, 1, 0], [0, 0, 1]]).bool()
    torch.testing.assert_close(mean_tokens(x, tokens), torch.stack([x[0, :2].mean(0), x[1, 2]]))
    torch.testing.assert_close(mean_tokens(x, None), x.mean(1))
    assert mean_tokens(x[0], tokens) is not None and torch.equal(mean_tokens(x[0], None), x[0])


def test_a_plain_sink_keeps_nothing_of_it():
    model, sink = adapt(nn.Sequential(nn.Linear(6, 5)), "lora", rank=2), Sink()
    with torch.no_grad(), using(model, sink=sink):
        model(torch.ones(2, 6))
    assert sink.means() == {}
