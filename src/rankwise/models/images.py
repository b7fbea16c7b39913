"""Raw images to what a vision model takes, in torch alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from rankwise.errors import DataError

FORM = "uint8 [N, H, W] or [N, H, W, 3], or a sequence of such images or PIL images"


HALF = (0.5, 0.5, 0.5)


def encode_images(
    inputs: Sequence[Any] | Tensor, *, size: int, mean: Sequence[float] = HALF, std: Sequence[float] = HALF
) -> dict[str, Tensor]:
    """Return `pixels(...)` as the batch of a vision base: {"pixel_values": float32 [N, 3, size, size]}."""
    return {"pixel_values": pixels(inputs, size, mean, std)}


def pixels(
    inputs: Sequence[Any] | Tensor | np.ndarray, size: int, mean: Sequence[float] = HALF, std: Sequence[float] = HALF
) -> Tensor:
    """Bring images to float32 [N, 3, size, size]: resized, scaled to [0, 1], then (x - mean) / std per channel.

    Resizing is bilinear with antialiasing and does not keep the aspect ratio: the whole image fills the square. Grey
    images get three equal channels. A sequence may mix sizes, grey and colour. Raises DataError for any other form,
    naming the form met and the place in the sequence.
    """
    if isinstance(inputs, np.ndarray):
        inputs = torch.from_numpy(np.ascontiguousarray(inputs))
    if isinstance(inputs, Tensor):
        return _batch(inputs, size, mean, std)
    images = [_array(image, place) for place, image in enumerate(inputs)]
    if not images:
        return torch.empty(0, 3, size, size)
    if all(image.shape == images[0].shape for image in images):
        return _batch(torch.stack(images), size, mean, std)
    return torch.cat([_batch(image.unsqueeze(0), size, mean, std) for image in images])


def _array(image: Any, place: int) -> Tensor:
    """Turn one image of a sequence into a uint8 tensor [H, W] or [H, W, 3]."""
    if isinstance(image, Image.Image):
        image = np.array(image if image.mode == "L" else image.convert("RGB"))
    tensor = torch.from_numpy(np.ascontiguousarray(image)) if isinstance(image, np.ndarray) else image
    grey_or_colour = isinstance(tensor, Tensor) and (tensor.ndim == 2 or (tensor.ndim == 3 and tensor.shape[-1] == 3))
    if not grey_or_colour or tensor.dtype != torch.uint8:
        form = f"{tensor.dtype} {list(tensor.shape)}" if isinstance(tensor, Tensor) else type(image).__name__
        raise DataError(f"image {place} is {form}; give {FORM}")
    return tensor


def _batch(images: Tensor, size: int, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Do the work for images of one size."""
    grey = images.ndim == 3
    if images.dtype != torch.uint8 or not (grey or (images.ndim == 4 and images.shape[-1] == 3)):
        raise DataError(f"images are {images.dtype} {list(images.shape)}; give {FORM}")
    x = (images.unsqueeze(1) if grey else images.permute(0, 3, 1, 2)).float()
    if x.shape[-2:] != (size, size) and len(x):
        x = functional.interpolate(x, size=(size, size), mode="bilinear", antialias=True, align_corners=False)
    scale = 1.0 / (255.0 * torch.tensor(std, dtype=torch.float64))
    shift = -torch.tensor(mean, dtype=torch.float64) / torch.tensor(std, dtype=torch.float64)
    x = x * scale.float().view(1, 3, 1, 1) + shift.float().view(1, 3, 1, 1)
    return x if len(x) else x.new_empty(0, 3, size, size)
