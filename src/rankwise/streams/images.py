"""Pictures as uint8 arrays: decode encoded files within a bound on memory, and rotate without chance."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from rankwise.errors import DataError

EAGER_BYTES = 512 * 1024 * 1024
"""Decoded pictures of one size are held as one tensor up to this many bytes; beyond it each is decoded when it is
read."""
MAX_PIXELS = 64_000_000
"""A picture with more pixels than this is refused before it is decoded (a small file can unpack to gigabytes)."""
GREY_MODES = ("1", "L")
COLOUR_MODES = ("RGB", "RGBA", "P", "PA", "LA", "CMYK", "YCbCr")
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
"""Formats that are decoded, by content whatever the name says: others may start programs (PostScript does)."""
BROKEN = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)


@dataclass(frozen=True)
class Header:
    """What a picture's header says: width and height in pixels, and whether it is grey."""

    width: int
    height: int
    grey: bool


class EncodedImages(Sequence[np.ndarray]):
    """Encoded pictures, decoded one at a time when read: uint8 [H, W] (all grey) or [H, W, 3]."""

    def __init__(self, items: Sequence[bytes | Path], labels: Sequence[str], grey: bool) -> None:
        """`items` are encoded bytes or paths; `labels[i]` is what an error calls picture i, such as `cats.parquet,
        row 7`."""
        self.items, self.labels, self.grey = items, labels, grey

    @overload
    def __getitem__(self, i: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, i: slice) -> EncodedImages: ...
    def __getitem__(self, i: int | slice) -> Any:
        """Decode picture `i`; a slice stays encoded. Raises DataError naming the row if it is broken."""
        if isinstance(i, slice):
            return EncodedImages(self.items[i], self.labels[i], self.grey)
        return decode(self.items[i], self.labels[i], self.grey)

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.items)

    def __iter__(self) -> Iterator[np.ndarray]:
        """Pictures one by one, decoded as they are reached."""
        return (self[i] for i in range(len(self)))

    def raw(self, i: int) -> bytes:
        """The encoded bytes of picture `i`."""
        item = self.items[i]
        return item if isinstance(item, bytes) else _file_bytes(item, self.labels[i])


def pictures(items: Sequence[bytes | Path], labels: Sequence[str]) -> Tensor | EncodedImages:
    """Encoded pictures as one uint8 tensor [N, H, W] or [N, H, W, 3] if of one size and within EAGER_BYTES, else
    lazily.

    Grey only if every picture is grey; otherwise all become RGB. Raises DataError naming the row of a broken one.
    """
    headers = [header(item, label) for item, label in zip(items, labels, strict=True)]
    grey = all(h.grey for h in headers)
    encoded = EncodedImages(items, labels, grey)
    channels = 1 if grey else 3
    size = sum(h.width * h.height * channels for h in headers)
    if len({(h.width, h.height) for h in headers}) != 1 or size > EAGER_BYTES:
        return encoded
    return torch.from_numpy(np.stack(list(encoded)))


def header(item: bytes | Path, label: str) -> Header:
    """Read a picture's header only; refuses what is no picture, too large, or not 8 bits a channel (DataError)."""
    try:
        with Image.open(_opened(item, label), formats=FORMATS) as image:
            (width, height), mode = image.size, image.mode
    except BROKEN as error:
        raise _broken(label, error) from error
    if width * height > MAX_PIXELS:
        raise DataError(f"{label}: the picture has {width} x {height} pixels, more than {MAX_PIXELS}; make it smaller")
    if mode not in GREY_MODES + COLOUR_MODES:
        raise DataError(f"{label}: the picture has mode {mode}, not 8 bits a channel; save it as 8-bit grey or RGB")
    return Header(width, height, mode in GREY_MODES)


def decode(item: bytes | Path, label: str, grey: bool) -> np.ndarray:
    """One picture as uint8 [H, W] (grey) or [H, W, 3]. Raises DataError naming `label` if it is broken."""
    try:
        with Image.open(_opened(item, label), formats=FORMATS) as image:
            return np.array(image.convert("L" if grey else "RGB"), dtype=np.uint8)
    except BROKEN as error:
        raise _broken(label, error) from error


def encode_png(image: Image.Image) -> bytes:
    """A picture object as PNG bytes (lossless), so that pictures held in memory are read the same way as files."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def _opened(item: bytes | Path, label: str) -> io.BytesIO:
    return io.BytesIO(item if isinstance(item, bytes) else _file_bytes(item, label))


def _file_bytes(path: Path, label: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{label}: cannot read the picture ({error.strerror}); restore the file") from error


def _broken(label: str, error: BaseException) -> DataError:
    return DataError(f"{label}: not a readable picture ({error}); replace or remove it")


def rotate(images: Tensor, degrees: float) -> Tensor:
    """Rotate uint8 images [N, H, W] or [N, H, W, 3] counter-clockwise about their centre; corners become 0.

    Quarter turns of square images (and half turns of any) move pixels exactly; other angles are bilinear in float32.
    """
    quarters = degrees / 90
    square = images.shape[1] == images.shape[2]
    if quarters == round(quarters) and (square or round(quarters) % 2 == 0):
        return torch.rot90(images, round(quarters) % 4, dims=(1, 2))
    planes = (images.unsqueeze(-1) if images.ndim == 3 else images).permute(0, 3, 1, 2)
    turned = torch.cat([_turn(part.float(), degrees) for part in planes.split(1024)])
    turned = turned.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    return turned.squeeze(-1) if images.ndim == 3 else turned


def _turn(planes: Tensor, degrees: float) -> Tensor:
    height, width = planes.shape[-2:]
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    # Coordinates run from -1 to 1 on both axes, so the off-diagonal terms carry the aspect ratio. y points down: this
    # is the inverse map (output to input) of a counter-clockwise turn as seen on screen.
    affine = torch.tensor([[cos, -sin * height / width, 0.0], [sin * width / height, cos, 0.0]])
    grid = functional.affine_grid(affine.expand(len(planes), 2, 3), list(planes.shape), align_corners=False)
    return functional.grid_sample(planes, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
