"""The branch of SEMA: bottleneck adapters mixed by a router, and beside each a descriptor of what it was made for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Generator, Tensor, nn

from rankwise.adapters import Blocks, Branch, Context, Site, Spec, Weight
from rankwise.adapters.bank import BLOCK
from rankwise.adapters.inits import kaiming
from rankwise.adapters.probes import mean_tokens
from rankwise.config import Count

ADAPTER = ("down", "down_bias", "up", "up_bias")
ROUTER = ("router", "router_bias")
DESCRIPTOR = ("encoder", "encoder_bias", "decoder", "decoder_bias")


@dataclass(frozen=True)
class Modular(Branch):
    """K bottleneck adapters beside a block's MLP, one a block of the bank, mixed by a router over the mean token.

        h_k = U_k relu(D_k x + b_k) + c_k        w = softmax(W mean_tokens(x) + v)        delta(x) = s sum_k w_k h_k
        e_k = mean over features of (dec_k(enc_k(z)) - z)^2,   z = mean_tokens(x)         (not part of the forward)

    | symbol | shape | tensor |
    |---|---|---|
    | D, b | [r, in], [r] | down, down_bias: uniform in +-1/sqrt(in); 0 |
    | U, c | [out, r], [out] | up, up_bias: 0, so that a new adapter moves the output by its share of w alone |
    | W, v | [K, in], [K] | router, router_bias: one row an adapter, where the site may expand |
    | enc, dec | [latent, in], [in, latent] | encoder, decoder and their biases: a linear autoencoder, there too |

    A site that may not expand (all but the last `expandable` spans) has no router and no descriptor: its adapters add
    up, and there is one. As in the authors' code, x is the residual stream before its normalisation.
    """

    expandable: Annotated[int, Field(ge=0)] = 3
    """How many blocks may expand, counted from the last."""
    latent: Count = 128
    """Width of a descriptor's code. Small against the features, or it reconstructs everything."""

    @property
    def linear(self) -> bool:
        """False: hidden units and router depend on the input."""
        return False

    def expands(self, site: Site) -> bool:
        """Say whether `site` is one that may expand."""
        return site.behind < self.expandable

    def specs(self, site: Site) -> Mapping[str, Spec]:
        """Return the tensors of `site`."""
        adapter = {"down": Spec(("rank", "in"), "down"), "down_bias": Spec(("rank",), "bias")}
        adapter |= {"up": Spec(("out", "rank"), "up"), "up_bias": Spec((BLOCK, "out"), "bias")}
        if not self.expands(site):
            return adapter
        router = {"router": Spec((BLOCK, "in"), "router"), "router_bias": Spec((BLOCK,), "router")}
        axes = {"encoder": ("latent", "in"), "encoder_bias": ("latent",)}
        axes |= {"decoder": ("in", "latent"), "decoder_bias": ("in",)}
        return {**adapter, **router, **{name: Spec((BLOCK, *rest), "descriptor") for name, rest in axes.items()}}

    def start(self, site: Site, rank: int, rng: Generator, weight: Weight) -> dict[str, Tensor]:
        """Return the start of an adapter of `rank` hidden units, its router row and its descriptor."""
        zeros = {"down_bias": (rank,), "up": (site.n_out, rank), "up_bias": (site.n_out,)}
        found = {"down": kaiming(rank, site.n_in, rng), **{name: torch.zeros(shape) for name, shape in zeros.items()}}
        if not self.expands(site):
            return found
        layers = {"encoder": (self.latent, site.n_in), "decoder": (site.n_in, self.latent), "router": (1, site.n_in)}
        for name, shape in layers.items():
            found |= {name: kaiming(*shape, rng), f"{name}_bias": kaiming(*shape, rng)[:, 0]}
        return {**found, **{name: found[name][0] for name in ROUTER}}

    def delta(
        self, x: Tensor, y: Tensor, blocks: Blocks, context: Context, site: Site, module: nn.Module, training: bool
    ) -> Tensor:
        """Return the mixture of the adapters' outputs; see the class."""
        x = self.dropped(x.to(blocks.parts[0]["down"].dtype), training)
        w = self.mixture(x, blocks, context.tokens) if self.expands(site) else x.new_ones(len(x), len(blocks.labels))
        w = w.view(len(x), *[1] * (x.ndim - 2), -1)
        sizes = torch.tensor(blocks.sizes, device=x.device)
        wide = w.repeat_interleave(sizes, -1, output_size=sum(blocks.sizes))
        z = F.relu(F.linear(x, blocks["down"], blocks["down_bias"])) * wide
        return (F.linear(z, blocks["up"]) + w @ blocks["up_bias"]) * (self.scale * site.scale)

    def mixture(self, x: Tensor, blocks: Blocks, tokens: Tensor | None) -> Tensor:
        """Return w [n, K] for inputs x [n, ..., in]; each row sums to 1."""
        scores = F.linear(mean_tokens(x, tokens), blocks["router"], blocks["router_bias"])
        return scores.float().softmax(-1).to(x.dtype)

    def errors(self, blocks: Blocks, z: Tensor) -> Tensor:
        """Return e [n, K], each descriptor's error on the mean tokens z [n, in], in float32."""
        z = z.float()
        with torch.autocast(z.device.type, enabled=False):
            code = torch.einsum("nd,kld->nkl", z, blocks["encoder"].float()) + blocks["encoder_bias"].float()
            back = torch.einsum("nkl,kdl->nkd", code, blocks["decoder"].float()) + blocks["decoder_bias"].float()
        return (back - z[:, None]).square().mean(-1)
