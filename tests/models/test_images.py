"""Images of every accepted form become the same pixels."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from rankwise.errors import DataError
from rankwise.models.images import encode_images, pixels


def random_images(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("shape", [(5, 12, 9), (5, 12, 9, 3), (5, 16, 16, 3)])
def test_tensor_array_list_and_pil_agree_bit_for_bit(shape):
    images = random_images(*shape)
    want = pixels(images, 16)
    assert want.shape == (5, 3, 16, 16) and want.dtype == torch.float32
    for form in (images.numpy(), list(images), list(images.numpy()), [Image.fromarray(x) for x in images.numpy()]):
        assert torch.equal(pixels(form, 16), want)


def test_mixed_sizes_and_colours_equal_each_image_alone():
    images = [random_images(12, 9), random_images(30, 30, 3), random_images(8, 8)]
    want = torch.cat([pixels(image.unsqueeze(0), 16) for image in images])
    assert torch.equal(pixels(images, 16), want)


def test_values_follow_mean_and_std():
    image = torch.full((1, 4, 4, 3), 255, dtype=torch.uint8)
    image[..., 1] = 0
    got = pixels(image, 4, mean=[0.5, 0.25, 0.0], std=[0.5, 0.5, 0.1])
    assert torch.allclose(got[0, :, 0, 0], torch.tensor([1.0, -0.5, 10.0]), atol=1e-6)


def test_grey_gets_three_equal_channels():
    got = pixels(random_images(2, 8, 8), 8)
    assert torch.equal(got[:, 0], got[:, 1]) and torch.equal(got[:, 0], got[:, 2])


def test_shrinking_is_antialiased_and_growing_interpolates():
    stripes = torch.zeros(1, 32, 32, dtype=torch.uint8)
    stripes[:, :, ::2] = 255
    small = pixels(stripes, 8, mean=[0.0] * 3, std=[1.0] * 3)[0, 0, :, 1:-1]
    assert torch.allclose(small, torch.full_like(small, 0.5), atol=0.05)  # plain sampling would give 0 or 1
    step = torch.tensor([[[0, 255]]], dtype=torch.uint8).expand(1, 2, 2)
    grown = pixels(step, 4, mean=[0.0] * 3, std=[1.0] * 3)[0, 0, 0]
    assert torch.allclose(grown, torch.tensor([0.0, 0.25, 0.75, 1.0]), atol=1e-6)


def test_pil_modes_beyond_grey_become_colour():
    image = Image.new("RGBA", (4, 4), (255, 0, 0, 255))
    assert torch.equal(pixels([image], 4), pixels([image.convert("RGB")], 4))
    assert torch.equal(pixels([image.convert("P")], 4), pixels([image.convert("RGB")], 4))


def test_nothing_gives_nothing():
    assert pixels([], 8).shape == (0, 3, 8, 8)
    assert encode_images(torch.empty(0, 5, 5, dtype=torch.uint8), size=8)["pixel_values"].shape == (0, 3, 8, 8)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (torch.zeros(2, 8, 8), "float32"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), r"\[2, 3, 8, 8\]"),
        ([torch.zeros(8, 8, dtype=torch.uint8), torch.zeros(8, 8)], "image 1 is torch.float32"),
        (["a cat"], "image 0 is str"),
    ],
)
def test_other_forms_are_refused_by_name(wrong, said):
    with pytest.raises(DataError, match=said):
        pixels(wrong, 8)
