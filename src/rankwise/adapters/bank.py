"""Named tensors that grow along one axis, block by block: frozen blocks packed in buffers, live ones as parameters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from rankwise.errors import UsageError, nearest

BLOCK = "block"
"""Axis of tensors that have one entry a block, whatever its ranks."""


@dataclass(frozen=True)
class Spec:
    """One tensor of a bank: the name of each of its axes and the part it plays."""

    axes: tuple[str, ...]
    """Axis names in order, for example ("rank", "in"). The bank grows along one of them: "block", with one entry a
    block, where that name occurs, and the bank's own axis elsewhere."""
    role: str
    """What it is for: down, up, gate, core, router, bias, head, mean."""
    learns: bool = True
    """False: the tensor is fixed from the start, also while its block is live."""


@dataclass(frozen=True)
class Block:
    """A run of positions on the growing axis, learnt together."""

    label: str
    size: int
    live: bool


@dataclass(frozen=True)
class Blocks:
    """The tensors of the blocks that act in one forward, in order: two parts for all of them, else one a block."""

    parts: tuple[Mapping[str, Tensor], ...]
    """Each part holds every tensor of the bank, cut to the part's blocks."""
    sizes: tuple[int, ...]
    """Length of each acting block on the growing axis."""
    labels: tuple[str, ...]
    dims: Mapping[str, int]
    """Tensor name -> position of the growing axis."""
    widths: tuple[int, ...]
    """Length of each part on the bank's own axis."""
    shared: Mapping[str, Tensor] = field(default_factory=dict)
    """Tensors that all sites of the model have in common."""
    live: tuple[bool, ...] = ()
    """Whether each acting block is live: noise and losses of routing are for those alone."""

    def __getitem__(self, name: str) -> Tensor:
        """Return tensor `name` over all acting blocks, concatenated along the growing axis."""
        pieces = [part[name] for part in self.parts]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, self.dims[name])

    def each(self) -> list[Mapping[str, Tensor]]:
        """Return the tensors of every acting block by itself, in order, for updates that are no sum over ranks."""
        found: list[Mapping[str, Tensor]] = []
        for part, width in zip(self.parts, self.widths, strict=True):
            sizes: list[int] = []
            while sum(sizes) < width:
                sizes.append(self.sizes[len(found) + len(sizes)])
            cuts = {n: self._cut(t, self.dims[n], sizes) for n, t in part.items()}
            found += [{n: pieces[i] for n, pieces in cuts.items()} for i in range(len(sizes))]
        return found

    @staticmethod
    def _cut(tensor: Tensor, dim: int, sizes: list[int]) -> Sequence[Tensor]:
        """Cut a tensor into blocks of `sizes`, or, where it has one entry a block, into those."""
        return tensor.split(sizes if tensor.shape[dim] == sum(sizes) else [1] * len(sizes), dim)

    def split(self, values: Tensor) -> Sequence[Tensor]:
        """Cut `values` [..., R] into one piece a part, so that each meets its own part's tensors."""
        return (values,) if len(self.parts) == 1 else values.split(list(self.widths), -1)


class Packed(nn.Module):
    """Tensors that do not learn: buffers, so no optimiser, decay or `requires_grad` switch can reach them."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        """Hold `tensors` by name."""
        super().__init__()
        self.hold(tensors)

    def hold(self, tensors: Mapping[str, Tensor]) -> None:
        """Hold these, too."""
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)

    def tensors(self) -> dict[str, Tensor]:
        """Return what is held, by name."""
        return {name: tensor for name, tensor in self._buffers.items() if tensor is not None}


class Bank(nn.Module):
    """Blocks of tensors that share one growing axis ("rank" at a site, "class" in a head).

    Old blocks are packed into one contiguous buffer a tensor, so they can have no gradient, no moments and no weight
    decay; live blocks are parameters. All change of structure goes through `append`, `freeze`, `thaw`, `select` and
    `drop`; parameters are new objects afterwards, so an optimiser must be built anew.
    """

    def __init__(self, specs: Mapping[str, Spec], axis: str, shared: Packed | None = None) -> None:
        """Make an empty bank of the tensors in `specs`, growing along `axis`, beside what it shares with others."""
        super().__init__()
        self.specs = dict(specs)
        self.axis = axis
        self.by_block = {name for name, spec in specs.items() if BLOCK in spec.axes}
        self.dims = {n: spec.axes.index(BLOCK if n in self.by_block else axis) for n, spec in specs.items()}
        self.blocks: tuple[Block, ...] = ()
        self.frozen = Packed({})
        self.live = nn.ParameterDict()
        self.fixed = Packed({})  # what does not learn of the live blocks
        self.shared = Packed({}) if shared is None else shared

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels of all blocks, frozen ones first."""
        return tuple(block.label for block in self.blocks)

    @property
    def size(self) -> int:
        """Total length of the growing axis."""
        return sum(block.size for block in self.blocks)

    def append(self, label: str, tensors: Mapping[str, Tensor]) -> None:
        """Add a live block behind all others, with its starting values; the length is read off the tensors.

        Tensors with the axis "block" come without it: [...] for one block.
        """
        if label in self.labels:
            raise UsageError(f"block {label!r} exists already; labels in this bank: {', '.join(self.labels)}")
        tensors = {n: tensors[n].unsqueeze(dim) if n in self.by_block else tensors[n] for n, dim in self.dims.items()}
        sizes = {tensors[n].shape[dim] for n, dim in self.dims.items() if n not in self.by_block} or {1}
        if len(sizes) != 1:
            raise UsageError(f"block {label!r}: tensors disagree on axis {self.axis!r}: {sorted(sizes)}")
        held = self._half(True) or self._half(False)  # a model cast to another dtype keeps it
        tensors = {name: tensor.to(held.get(name, tensor)) for name, tensor in tensors.items()}
        self._set(self._half(False), self._join(self._half(True), tensors))
        self.blocks = (*self.blocks, Block(label, sizes.pop(), True))

    def freeze(self) -> None:
        """Pack every live block behind the frozen ones; their values never change again."""
        self._set(self._join(self._half(False), self._half(True)), {})
        self.blocks = tuple(Block(block.label, block.size, False) for block in self.blocks)

    def thaw(self, labels: Iterable[str]) -> None:
        """Make the blocks in `labels` live and all others frozen, keeping the order within each half."""
        wanted = {self._known(label) for label in labels}
        whole = [(block, self.positions(block.label)) for block in self.blocks]
        self._rearrange(
            [(Block(b.label, b.size, False), p) for b, p in whole if b.label not in wanted]
            + [(Block(b.label, b.size, True), p) for b, p in whole if b.label in wanted]
        )

    def select(self, index: Tensor) -> None:
        """Keep only the positions in `index`, in the order they have; emptied blocks disappear."""
        keep = set(index.tolist())
        if outside := sorted(p for p in keep if not 0 <= p < self.size):
            raise UsageError(f"select: position {outside[0]} is not on axis {self.axis!r}, which has {self.size}")
        cut = [(block, self.positions(block.label)) for block in self.blocks]
        cut = [(block, positions[[p in keep for p in positions.tolist()]]) for block, positions in cut]
        whole = next(
            (name for name in self.specs if self.specs[name].axes.count(self.axis) and name in self.by_block), ""
        )
        if whole and any(0 < len(p) < block.size for block, p in cut):
            raise UsageError(f"select: {whole!r} has one entry a block, which cannot lose single positions")
        self._rearrange([(Block(block.label, len(p), block.live), p) for block, p in cut if len(p)])

    def drop(self, label: str) -> None:
        """Remove one block and everything it held."""
        gone = set(self.positions(self._known(label)).tolist())
        self.select(torch.tensor([p for p in range(self.size) if p not in gone], dtype=torch.long))

    def positions(self, label: str) -> Tensor:
        """Return where block `label` lies on the growing axis: int64 [size]."""
        start = 0
        for block in self.blocks:
            if block.label == label:
                return torch.arange(start, start + block.size)
            start += block.size
        raise UsageError(f"no block {label!r} here; {nearest(label, self.labels)}")

    def view(self, labels: Sequence[str] | None = None) -> Blocks:
        """Return the tensors of the named blocks (None: all; names this bank does not hold are passed over)."""
        chosen = self.blocks if labels is None else tuple(block for block in self.blocks if block.label in labels)
        sizes = tuple(block.size for block in chosen)
        if len(chosen) == len(self.blocks):
            parts, widths = self._halves(), tuple(n for n in (self._length(False), self._length(True)) if n)
        else:
            parts, widths = [self._cut(block) for block in chosen], sizes
        labels, live = tuple(block.label for block in chosen), tuple(block.live for block in chosen)
        return Blocks(tuple(parts), sizes, labels, self.dims, widths, self.shared.tensors(), live)

    def tensor(self, name: str) -> Tensor:
        """Return tensor `name` over all blocks."""
        return self.view()[name]

    def state(self) -> tuple[dict[str, Tensor], list[dict[str, object]]]:
        """Return (tensors by "frozen.<name>" or "live.<name>", the list of blocks) as `restore` takes them."""
        halves = {"frozen": self._half(False), "live": self._half(True)}
        tensors = {f"{half}.{name}": tensor for half, parts in halves.items() for name, tensor in parts.items()}
        return tensors, [{"label": b.label, "size": b.size, "live": b.live} for b in self.blocks]

    def restore(self, tensors: Mapping[str, Tensor], blocks: Sequence[Mapping[str, object]]) -> None:
        """Put the bank into a state that `state` returned; parts that disagree raise UsageError and change nothing."""
        halves = {
            half: {name: tensors[f"{half}.{name}"] for name in self.specs if f"{half}.{name}" in tensors}
            for half in ("frozen", "live")
        }
        entries = tuple(Block(str(b["label"]), int(str(b["size"])), bool(b["live"])) for b in blocks)
        self._check(entries, halves)
        self._set(halves["frozen"], halves["live"])
        self.blocks = entries

    def _check(self, blocks: Sequence[Block], halves: Mapping[str, Mapping[str, Tensor]]) -> None:
        labels = [block.label for block in blocks]
        if len(set(labels)) < len(labels) or [b.live for b in blocks] != sorted(b.live for b in blocks):
            raise UsageError(f"blocks {labels}: labels must differ, and frozen blocks come before live ones")
        for half, live in (("frozen", False), ("live", True)):
            held = [block.size for block in blocks if block.live is live]
            for name, dim in self.dims.items():
                expected = len(held) if name in self.by_block else sum(held)
                tensor = halves[half].get(name)
                found = 0 if tensor is None else tensor.shape[dim]
                if found != expected:
                    raise UsageError(f"{half}.{name}: length {found} on axis {self.axis!r}, the blocks say {expected}")

    def _known(self, label: str) -> str:
        if label not in self.labels:
            raise UsageError(f"no block {label!r} here; {nearest(label, self.labels)}")
        return label

    def _length(self, live: bool) -> int:
        return sum(block.size for block in self.blocks if block.live is live)

    def _part(self, live: bool) -> dict[str, Tensor]:
        if not live:
            return self.frozen.tensors()
        held = {**dict(self.live.items()), **self.fixed.tensors()}
        return {name: held[name] for name in self.specs if name in held}

    def _half(self, live: bool) -> dict[str, Tensor]:
        return {name: tensor.detach() for name, tensor in self._part(live).items()}

    def _halves(self) -> list[Mapping[str, Tensor]]:
        return [part for part in (self._part(False), self._part(True)) if part]

    def _cut(self, block: Block) -> Mapping[str, Tensor]:
        before = [b.size for b in self.blocks[: self.blocks.index(block)] if b.live is block.live]
        cut = {True: (len(before), 1), False: (sum(before), block.size)}
        part = self._part(block.live)
        return {name: tensor.narrow(self.dims[name], *cut[name in self.by_block]) for name, tensor in part.items()}

    def _join(self, first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if not first or not second:
            return dict(first or second)
        return {name: torch.cat([first[name], second[name].to(first[name])], dim) for name, dim in self.dims.items()}

    def _rearrange(self, pieces: Sequence[tuple[Block, Tensor]]) -> None:
        """Keep each listed block, in this order (frozen ones first), at the positions given for it."""
        whole = self._join(self._half(False), self._half(True))
        numbers = {label: torch.tensor([i]) for i, label in enumerate(self.labels)}

        def gather(live: bool) -> dict[str, Tensor]:
            chosen = [(block, positions) for block, positions in pieces if block.live is live]
            if not chosen:
                return {}
            own = torch.cat([positions for _, positions in chosen])
            blocks = torch.cat([numbers[block.label] for block, _ in chosen])
            index = {n: blocks if n in self.by_block else own for n in self.dims}
            return {n: whole[n].index_select(dim, index[n].to(whole[n].device)) for n, dim in self.dims.items()}

        frozen, live = gather(False), gather(True)
        self._set(frozen, live)
        self.blocks = tuple(sorted((block for block, _ in pieces), key=lambda block: block.live))

    def _set(self, frozen: Mapping[str, Tensor], live: Mapping[str, Tensor]) -> None:
        layout = torch.contiguous_format
        live = {n: t.clone(memory_format=layout) for n, t in live.items()}
        self.frozen = Packed({n: t.clone(memory_format=layout) for n, t in frozen.items()})
        self.live = nn.ParameterDict({n: nn.Parameter(t) for n, t in live.items() if self.specs[n].learns})
        self.fixed = Packed({n: t for n, t in live.items() if not self.specs[n].learns})
