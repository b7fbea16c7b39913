"""Sites: which modules of a base are adapted, and the two products each kind of module needs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from rankwise.errors import UsageError, nearest


@dataclass(frozen=True)
class Site:
    """One place where a low-rank branch acts: a module, or a run of output rows of a fused projection."""

    name: str
    """Dotted path of the module, with ".<part>" behind it for a part of a fused projection."""
    path: str
    """Dotted path of the module in the base."""
    kind: str
    """linear, transposed (transformers' Conv1D), embedding or conv2d."""
    n_in: int
    """Input width: features, vocabulary size (embedding) or channels x kernel height x kernel width (conv2d)."""
    n_out: int
    """Output width of this site: all output features, or those of its part."""
    rows: tuple[int, int] | None = None
    """First and last-but-one output feature of the part; None: all."""
    kernel: tuple[int, ...] = ()
    """(channels, height, width) of a convolution's kernel."""
    width: int = 0
    """Output width of the whole module, all parts together."""
    scale: float = 1.0
    """Factor on the update here, besides the branch's own; other than 1 only where a checkpoint says so."""
    reads: str = ""
    """Dotted path of the module whose input the branch reads instead of its own module's; "": its own."""
    behind: int = 0
    """How many of the chosen spans (see SPANS) come after this one."""

    @property
    def layer(self) -> int | None:
        """Index of the block this site is in: the first number in its path; None outside numbered blocks."""
        return next((int(word) for word in self.path.split(".") if word.isdigit()), None)


@dataclass(frozen=True)
class Algebra:
    """How a kind of module meets factors A [r, in] and B [out, r]; the rank is the last axis of what lies between."""

    down: Callable[[Tensor, Tensor, nn.Module, Site], Tensor]
    """(x, A) -> A x."""
    up: Callable[[Tensor, Tensor], Tensor]
    """(v, B) -> B v, laid out as the module's output."""
    add: Callable[[Tensor, Tensor], Tensor]
    """(dense update [out, in], the module's weight) -> the update in the weight's layout."""


def _up_last(v: Tensor, b: Tensor) -> Tensor:
    return F.linear(v.contiguous(), b)  # cut off other ranks or alone: the same layout, the same bits


def _up_channels(v: Tensor, b: Tensor) -> Tensor:
    return F.conv2d(v.movedim(-1, 1).contiguous(), b[..., None, None])  # as PEFT does it, to the bit


def _down_rows(x: Tensor, a: Tensor, module: nn.Module, site: Site) -> Tensor:
    assert isinstance(module, nn.Embedding)
    return F.embedding(x, a.T, module.padding_idx)  # the padding row gets no gradient, as in the base


def _down_conv(x: Tensor, a: Tensor, module: nn.Module, site: Site) -> Tensor:
    assert isinstance(module, nn.Conv2d)
    kernel = a.view(a.shape[0], *site.kernel)
    z = F.conv2d(x, kernel, None, module.stride, module.padding, module.dilation)
    return z.movedim(1, -1)


ALGEBRAS: Mapping[str, Algebra] = {
    "linear": Algebra(lambda x, a, module, site: F.linear(x, a), _up_last, lambda update, weight: update),
    "transposed": Algebra(lambda x, a, module, site: F.linear(x, a), _up_last, lambda update, weight: update.T),
    "embedding": Algebra(_down_rows, _up_last, lambda update, weight: update.T),
    "conv2d": Algebra(_down_conv, _up_channels, lambda update, weight: update.view_as(weight)),
}


def _thirds(n_in: int, n_out: int) -> dict[str, int]:
    """Cut into q, k and v only where each is as wide as the input: other projections carry the same names."""
    return dict.fromkeys("qkv", n_in if n_out == 3 * n_in else 0)


FUSED: Mapping[str, Callable[[int, int], dict[str, int]]] = {
    "c_attn": _thirds,
    "Wqkv": _thirds,
    "in_proj": _thirds,
    "qkv": _thirds,
    "qkv_proj": lambda n_in, n_out: {"q": n_in, "k": (n_out - n_in) // 2, "v": (n_out - n_in) // 2},
    "gate_up_proj": lambda n_in, n_out: {"gate": n_out // 2, "up": n_out // 2},
}
"""Last word of a module's path -> (n_in, n_out) -> rows of each part, for projections that hold several in a row."""

MLP_SPAN, SPAN = "mlp-span", ".span"
"""The word for all spans in a config, and what a span's name ends in."""
SPANS = (
    ("layernorm_after", "mlp.fc2"),  # ViT
    ("layernorm_after", "output.dense"),  # ViT of older releases
    ("layer_norm2", "mlp.fc2"),  # CLIP, SigLIP
    ("pre_feedforward_layernorm", "post_feedforward_layernorm"),  # Gemma 2 and 3
    ("post_attention_layernorm", "mlp.down_proj"),  # Llama, Qwen, Gemma, Mistral
    ("ln_2", "mlp.c_proj"),  # GPT-2
    ("layer_norm", "DenseReluDense.wo"),  # T5
    ("intermediate.dense", "output.dense"),  # BERT, which normalises after the sum
)
"""(module whose input is the residual stream before a block's MLP, module whose output is added to it), under the path
of a block. A branch that reads the one and adds to the other stands beside the whole MLP; the first that fits counts.
"""

HEADS = ("lm_head", "classifier", "score", "embed_out", "qa_outputs", "vocab_projector", "head", "heads")
"""Words of a path that name an output head: "all-linear" leaves out what is one or lies in one."""


def shape_of(module: nn.Module) -> tuple[str, int, int] | None:
    """Return (kind, n_in, n_out) of the site `module` can be, or None.

    The sizes are those it was made with, as a quantised weight has another shape. Left out: modules whose weight is
    used without calling them (the output projection of torch's attention), or whose output is no plain product
    (embeddings that are scaled or renormalised, grouped convolutions).
    """
    if isinstance(module, nn.Linear):
        called = not isinstance(module, NonDynamicallyQuantizableLinear)
        return ("linear", module.in_features, module.out_features) if called else None
    if type(module) is nn.Embedding and module.max_norm is None:
        return "embedding", module.num_embeddings, module.embedding_dim
    if isinstance(module, nn.Conv2d) and module.groups == 1 and module.padding_mode == "zeros":
        return "conv2d", module.in_channels * math.prod(module.kernel_size), module.out_channels
    if type(module).__name__ == "Conv1D" and type(module).__module__.startswith("transformers"):
        return "transposed", vars(module)["nx"], vars(module)["nf"]
    return None


def all_sites(model: nn.Module, *, cut: bool = True) -> tuple[Site, ...]:
    """Return every site `model` has, in module order, fused projections cut into their parts (or whole)."""
    found: list[Site] = []
    for path, module in model.named_modules():
        shape = shape_of(module)
        if shape is not None:
            found.extend(_parts(path, module, *shape, cut))
    return tuple(found)


def _parts(path: str, module: nn.Module, kind: str, n_in: int, n_out: int, cut: bool) -> list[Site]:
    kernel = (module.in_channels, *module.kernel_size) if isinstance(module, nn.Conv2d) else ()
    fused = FUSED.get(_last(path)) if cut and kind in ("linear", "transposed") else None
    widths = fused(n_in, n_out) if fused else {}
    if sum(widths.values()) != n_out or min(widths.values(), default=0) <= 0:
        return [Site(path, path, kind, n_in, n_out, None, kernel, n_out)]
    sites, start = [], 0
    for part, width in widths.items():
        sites.append(Site(f"{path}.{part}", path, kind, n_in, width, (start, start + width), (), n_out))
        start += width
    return sites


def span_sites(model: nn.Module) -> tuple[Site, ...]:
    """Return the spans `model` has, one beside each MLP, in module order; none in architectures SPANS does not know."""
    modules, found = dict(model.named_modules()), dict[str, Site]()
    for reads, writes in SPANS:
        for path, module in modules.items():
            block = path.removesuffix(writes)
            if block != path and block not in found and f"{block}{reads}" in modules:
                shape = shape_of(module)
                width = shape[2] if shape else len(module.get_parameter("weight"))
                found[block] = Site(f"{path}{SPAN}", path, "linear", width, width, width=width, reads=f"{block}{reads}")
    places = {path: place for place, path in enumerate(modules)}
    return tuple(sorted(found.values(), key=lambda site: places[site.path]))


def pick_sites(
    model: nn.Module,
    sites: str | Sequence[str] = "all-linear",
    *,
    layers: Sequence[int] | None = None,
    exclude: Sequence[str] = (),
) -> tuple[Site, ...]:
    """Choose the sites to adapt.

    Args:
        model: the base; nothing in it changes.
        sites: "all-linear" (every linear or Conv1D module but output heads), "mlp-span" (beside each block's MLP: from
            its residual input to its output), or names: a whole path, the end of one ("q_proj", "c_attn.q") or a glob
            over whole paths ("layers.*.mlp.*"). Never a regular expression.
        layers: (first, last) block, both included; None: all blocks.
        exclude: names in the same three forms that are taken out again.

    Raises:
        UsageError: a name that matches nothing (with the nearest that would), or an empty choice.

    """
    known = span_sites(model) if sites == MLP_SPAN else all_sites(model)
    if sites == MLP_SPAN:
        chosen = list(known)
    elif sites == "all-linear":
        chosen = [site for site in known if site.kind in ("linear", "transposed") and not _in_head(site.path)]
    else:
        names = [sites] if isinstance(sites, str) else list(sites)
        _refuse_unmatched(names, known)
        chosen = [site for site in known if _any_match(names, site)]
    _refuse_unmatched(exclude, known)
    chosen = [site for site in chosen if not _any_match(exclude, site) and _in_layers(site, layers)]
    if not chosen:
        raise UsageError(f"sites = {sites!r}, layers = {layers!r}: no module is left to adapt; widen the choice")
    spans = [site for site in chosen if site.reads]
    return tuple(replace(s, behind=len(spans) - 1 - spans.index(s)) if s.reads else s for s in chosen)


def _last(path: str) -> str:
    return path.rpartition(".")[2]


def _in_head(path: str) -> bool:
    return any(word in HEADS for word in path.split(".")) or path.endswith("predictions.decoder")


def _in_layers(site: Site, layers: Sequence[int] | None) -> bool:
    if layers is None:
        return True
    if len(layers) != 2:
        raise UsageError(f"layers = {list(layers)}: give the first and the last block, as in [0, 5]")
    return site.layer is not None and layers[0] <= site.layer <= layers[1]


def _matches(name: str, site: Site) -> bool:
    return any(path == name or path.endswith(f".{name}") or fnmatchcase(path, name) for path in (site.path, site.name))


def _any_match(names: Iterable[str], site: Site) -> bool:
    return any(_matches(name, site) for name in names)


def _refuse_unmatched(names: Iterable[str], known: Sequence[Site]) -> None:
    for name in names:
        if not any(_matches(name, site) for site in known):
            ends = {_last(site.path) for site in known} | {"all-linear", MLP_SPAN}
            raise UsageError(f"sites: {name!r} matches no module of this model; {nearest(_last(name), ends)}")
