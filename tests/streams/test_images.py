from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from rankwise.errors import DataError
from rankwise.streams import images
from rankwise.streams.images import EncodedImages, decode, pictures, rotate


def encoded(array, kind="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format=kind)
    return buffer.getvalue()


def some(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def test_pictures_of_one_size_become_one_tensor():
    grey, colour = some(4, 5), some(4, 5, 3)
    found = pictures([encoded(grey), encoded(255 - grey)], ["a", "b"])
    assert found.dtype == torch.uint8 and found.shape == (2, 4, 5)
    assert np.array_equal(found[1].numpy(), 255 - grey)
    mixed = pictures([encoded(grey), encoded(colour)], ["a", "b"])
    assert mixed.shape == (2, 4, 5, 3)
    assert np.array_equal(mixed[0, ..., 2].numpy(), grey) and np.array_equal(mixed[1].numpy(), colour)


def test_pictures_of_several_sizes_or_beyond_the_bound_stay_encoded(monkeypatch):
    items = [encoded(some(4, 4)), encoded(some(6, 3))]
    lazy = pictures(items, ["a", "b"])
    assert isinstance(lazy, EncodedImages) and lazy.raw(1) == items[1]
    assert [x.shape for x in lazy] == [(4, 4), (6, 3)] and len(lazy[1:]) == 1
    monkeypatch.setattr(images, "EAGER_BYTES", 31)
    same = pictures([items[0], items[0]], ["a", "b"])
    assert isinstance(same, EncodedImages)
    monkeypatch.setattr(images, "EAGER_BYTES", 32)
    assert isinstance(pictures([items[0], items[0]], ["a", "b"]), torch.Tensor)


def test_a_broken_picture_is_named():
    good = encoded(some(32, 32))
    with pytest.raises(DataError, match="b, row 3: not a readable picture"):
        pictures([good, b"not a picture"], ["a", "b, row 3"])
    with pytest.raises(DataError, match="b, row 3: not a readable picture"):
        pictures([good, good[:200]], ["a", "b, row 3"])


def test_a_lazy_broken_picture_is_named_when_it_is_read():
    lazy = pictures([encoded(some(40, 40)), encoded(some(32, 32))[:200]], ["a", "b, row 3"])
    assert lazy[0].shape == (40, 40)
    with pytest.raises(DataError, match="b, row 3"):
        lazy[1]


def test_huge_and_deep_pictures_are_refused(monkeypatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 10)
    with pytest.raises(DataError, match="4 x 4 pixels, more than 10"):
        pictures([encoded(some(4, 4))], ["a"])
    monkeypatch.undo()
    with pytest.raises(DataError, match="not 8 bits a channel"):
        pictures([encoded(np.zeros((4, 4), dtype=np.uint16))], ["a"])


def test_jpeg_decodes_like_pillow():
    data = encoded(some(16, 16, 3), "JPEG")
    assert np.array_equal(decode(data, "a", grey=False), np.array(Image.open(io.BytesIO(data))))


@pytest.mark.parametrize("shape", [(3, 8, 8), (3, 8, 8, 3)])
def test_quarter_turns_move_pixels_exactly(shape):
    x = torch.from_numpy(some(*shape))
    assert torch.equal(rotate(x, 0), x)
    assert torch.equal(rotate(x, 90), torch.rot90(x, 1, dims=(1, 2)))
    assert torch.equal(rotate(rotate(x, 90), -90), x)
    assert torch.equal(rotate(x, 360), x)


def test_the_general_map_agrees_with_quarter_turns():
    x = torch.from_numpy(some(2, 9, 9))
    turned = images._turn(x.unsqueeze(1).float(), 90).squeeze(1).round().to(torch.uint8)
    assert torch.equal(turned, torch.rot90(x, 1, dims=(1, 2)))


def test_other_angles_keep_shape_type_and_repeat_exactly():
    x = torch.from_numpy(some(5, 8, 12, 3))
    assert rotate(x, 30).shape == x.shape and rotate(x, 30).dtype == torch.uint8
    assert torch.equal(rotate(x, 30), rotate(x, 30)) and not torch.equal(rotate(x, 30), x)
    assert rotate(x, 90).shape == x.shape
    smooth = torch.full((1, 33, 33), 200, dtype=torch.uint8)
    back = rotate(rotate(smooth, 30), -30)
    assert (back[0, 10:23, 10:23] == 200).all() and back[0, 0, 0] == 0


def test_a_turn_goes_counter_clockwise_on_wide_pictures_too():
    x = torch.zeros(1, 21, 41, dtype=torch.uint8)
    x[0, 10, 28:33] = 255  # 8 to 12 pixels right of the centre
    up = rotate(x, 90)[0]
    expected = torch.zeros(21, 41, dtype=torch.uint8)
    expected[0:3, 20] = 255
    assert torch.equal(up, expected)
