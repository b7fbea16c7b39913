"""Sites: which modules of a base are adapted, and the two products each kind of module needs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch.nn.functional as F
from torch import Tensor, nn

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

    @property
    def layer(self) -> int | None:
        """Index of the block this site is in: the first number in its path; None outside numbered blocks."""
        return next((int(word) for word in self.path.split(".") if word.isdigit()), None)


@dataclass(frozen=True)
class Algebra:
    """How a kind of module meets factors A [r, in] and B [out, r]; the rank is the last axis of what lies between."""

    kind: str
    shape: Callable[[nn.Module], tuple[int, int]]
    """Module -> (n_in, n_out)."""
    down: Callable[[Tensor, Tensor, nn.Module, Site], Tensor]
    """(x, A) -> A x."""
    up: Callable[[Tensor, Tensor], Tensor]
    """(v, B) -> B v, laid out as the module's output."""
    add: Callable[[Tensor, Tensor], Tensor]
    """(dense update [out, in], the module's weight) -> the update in the weight's layout."""


def _up_last(v: Tensor, b: Tensor) -> Tensor:
    return F.linear(v, b)


def _up_channels(v: Tensor, b: Tensor) -> Tensor:
    return F.linear(v, b).movedim(-1, 1)


def _down_conv(x: Tensor, a: Tensor, module: nn.Module, site: Site) -> Tensor:
    assert isinstance(module, nn.Conv2d)
    kernel = a.view(a.shape[0], *site.kernel)
    z = F.conv2d(x, kernel, None, module.stride, module.padding, module.dilation)
    return z.movedim(1, -1)


ALGEBRAS: Mapping[str, Algebra] = {
    "linear": Algebra(
        "linear",
        lambda m: (m.weight.shape[1], m.weight.shape[0]),
        lambda x, a, module, site: F.linear(x, a),
        _up_last,
        lambda update, weight: update,
    ),
    "transposed": Algebra(
        "transposed",
        lambda m: (m.weight.shape[0], m.weight.shape[1]),
        lambda x, a, module, site: F.linear(x, a),
        _up_last,
        lambda update, weight: update.T,
    ),
    "embedding": Algebra(
        "embedding",
        lambda m: (m.weight.shape[0], m.weight.shape[1]),
        lambda x, a, module, site: F.embedding(x, a.T),
        _up_last,
        lambda update, weight: update.T,
    ),
    "conv2d": Algebra(
        "conv2d",
        lambda m: (m.weight[0].numel(), m.weight.shape[0]),
        _down_conv,
        _up_channels,
        lambda update, weight: update.view_as(weight),
    ),
}

FUSED: Mapping[str, Callable[[int, int], dict[str, int]]] = {
    "c_attn": lambda n_in, n_out: dict.fromkeys("qkv", n_out // 3),
    "Wqkv": lambda n_in, n_out: dict.fromkeys("qkv", n_out // 3),
    "in_proj": lambda n_in, n_out: dict.fromkeys("qkv", n_out // 3),
    "qkv": lambda n_in, n_out: dict.fromkeys("qkv", n_out // 3),
    "qkv_proj": lambda n_in, n_out: {"q": n_in, "k": (n_out - n_in) // 2, "v": (n_out - n_in) // 2},
    "gate_up_proj": lambda n_in, n_out: {"gate": n_out // 2, "up": n_out // 2},
}
"""Last word of a module's path -> (n_in, n_out) -> rows of each part, for projections that hold several in a row."""

HEADS = ("lm_head", "classifier", "score", "embed_out", "qa_outputs")
"""Last words of a path that name an output head: "all-linear" leaves these out, as PEFT does."""


def kind_of(module: nn.Module) -> str | None:
    """Return the kind of site `module` can be, or None. Quantised linears count as linear: they are only called."""
    if isinstance(module, nn.Linear):
        return "linear"
    if isinstance(module, nn.Embedding):
        return "embedding"
    if isinstance(module, nn.Conv2d):
        return "conv2d" if module.groups == 1 and module.padding_mode == "zeros" else None
    return "transposed" if type(module).__name__ == "Conv1D" and type(module).__module__.startswith("transformers") else None


def all_sites(model: nn.Module) -> tuple[Site, ...]:
    """Return every site `model` has, in module order, fused projections cut into their parts."""
    found: list[Site] = []
    for path, module in model.named_modules():
        kind = kind_of(module)
        if kind is not None:
            found.extend(_parts(path, kind, module))
    return tuple(found)


def _parts(path: str, kind: str, module: nn.Module) -> list[Site]:
    n_in, n_out = ALGEBRAS[kind].shape(module)
    kernel = tuple(module.weight.shape[1:]) if isinstance(module, nn.Conv2d) else ()
    cut = FUSED.get(path.rpartition(".")[2]) if kind in ("linear", "transposed") else None
    widths = cut(n_in, n_out) if cut else {}
    if sum(widths.values()) != n_out or min(widths.values(), default=0) <= 0:
        return [Site(path, path, kind, n_in, n_out, None, kernel, n_out)]
    sites, start = [], 0
    for part, width in widths.items():
        sites.append(Site(f"{path}.{part}", path, kind, n_in, width, (start, start + width), (), n_out))
        start += width
    return sites


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
        sites: "all-linear" (every linear or Conv1D module but output heads), or names: a whole path, the end of one
            ("q_proj", "c_attn.q") or a glob over whole paths ("layers.*.mlp.*"). Never a regular expression.
        layers: (first, last) block, both included; None: all blocks.
        exclude: names in the same three forms that are taken out again.

    Raises:
        UsageError: a name that matches nothing (with the nearest that would), or an empty choice.

    """
    known = all_sites(model)
    if sites == "all-linear":
        chosen = [site for site in known if site.kind in ("linear", "transposed") and _last(site.path) not in HEADS]
    else:
        names = [sites] if isinstance(sites, str) else list(sites)
        _refuse_unmatched(names, known)
        chosen = [site for site in known if _any_match(names, site)]
    _refuse_unmatched(exclude, known)
    chosen = [site for site in chosen if not _any_match(exclude, site) and _in_layers(site, layers)]
    if not chosen:
        raise UsageError(f"sites = {sites!r}, layers = {layers!r}: no module is left to adapt; widen the choice")
    return tuple(chosen)


def _last(path: str) -> str:
    return path.rpartition(".")[2]


def _in_layers(site: Site, layers: Sequence[int] | None) -> bool:
    if layers is None:
        return True
    if len(layers) != 2:
        raise UsageError(f"layers = {list(layers)}: give the first and the last block, as in [0, 5]")
    return site.layer is not None and layers[0] <= site.layer <= layers[1]


def _matches(name: str, site: Site) -> bool:
    return any(
        path == name or path.endswith(f".{name}") or fnmatchcase(path, name) for path in (site.path, site.name)
    )


def _any_match(names: Iterable[str], site: Site) -> bool:
    return any(_matches(name, site) for name in names)


def _refuse_unmatched(names: Iterable[str], known: Sequence[Site]) -> None:
    for name in names:
        if not any(_matches(name, site) for site in known):
            ends = {_last(site.path) for site in known} | {"all-linear"}
            raise UsageError(f"sites: {name!r} matches no module of this model; {nearest(name, ends)}")
