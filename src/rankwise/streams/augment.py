"""Random views of training pictures. Which view a row shows depends on counters alone: the seed, what the row is drawn
for (task and epoch, or the draw that rehearses it and its step) and its row number.

So it depends neither on the rows it comes with nor on who prepares them, and a resumed run shows what the one that was
not interrupted would have shown. What is stored, scored or measured is always the picture itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from rankwise.errors import ConflictError
from rankwise.seeds import derive
from rankwise.streams.base import Split, Stream

SHARE = 8
"""`crop` moves a picture by up to 1/SHARE of its height and width: RandomCrop(32, padding=4) at 32 pixels."""

Operation = Callable[[Tensor, Sequence[int]], Tensor]
"""Pictures uint8 [N, H, W] or [N, H, W, 3] and N draws, uniform over 63 bits -> as many pictures of that size."""


def crop(pictures: Tensor, draws: Sequence[int]) -> Tensor:
    """Put a black border of H // SHARE and W // SHARE pixels round each picture, and cut it to its size at any place.

    >>> crop(torch.ones(1, 8, 8, dtype=torch.uint8), [0])[0, :2].tolist()
    [[0, 0, 0, 0, 0, 0, 0, 0], [0, 1, 1, 1, 1, 1, 1, 1]]
    """
    height, width = pictures.shape[1:3]
    top, left = height // SHARE, width // SHARE
    framed = pictures.new_zeros(len(pictures), height + 2 * top, width + 2 * left, *pictures.shape[3:])
    framed[:, top : top + height, left : left + width] = pictures
    places = [(draw % (2 * top + 1), draw // (2 * top + 1) % (2 * left + 1)) for draw in draws]
    return torch.stack([each[y : y + height, x : x + width] for each, (y, x) in zip(framed, places, strict=True)])


def flip(pictures: Tensor, draws: Sequence[int]) -> Tensor:
    """Mirror those pictures left to right whose draw is odd."""
    return torch.stack([each.flip(1) if draw % 2 else each for each, draw in zip(pictures, draws, strict=True)])


OPERATIONS: Mapping[str, Operation] = {"crop": crop, "flip": flip}
"""By the names of train.augment; they act in this order, whatever the order there."""


def views(split: Split, names: Sequence[str], seed: int, *keys: str | int) -> Split:
    """Return `split` with each picture as the operations `names` make it, drawn by (seed, operation, keys, row id).

    A tensor of pictures stays one; a sequence of pictures of different sizes becomes a list of tensors.
    """
    if not names:
        return split

    def shown(pictures: Tensor, ids: list[int]) -> Tensor:
        for name in (name for name in OPERATIONS if name in names):
            pictures = OPERATIONS[name](pictures, [derive(seed, "augment", name, *keys, row) for row in ids])
        return pictures

    ids = split.ids.tolist()
    if isinstance(split.inputs, Tensor):
        return Split(shown(split.inputs, ids), split.labels, split.ids)
    pictures = (torch.as_tensor(picture) for picture in split.inputs)
    one_by_one = [shown(picture[None], [row])[0] for picture, row in zip(pictures, ids, strict=True)]
    return Split(one_by_one, split.labels, split.ids)


def refuse_texts(names: Sequence[str], stream: Stream) -> None:
    """Raise ConflictError where views are asked of a stream that has no pictures."""
    if names and stream.modality != "image":
        raise ConflictError(
            f"train.augment = {list(names)} and stream {stream.name!r}, which holds texts: views are of pictures; "
            "remove train.augment"
        )
