"""Four labelled texts and pictures, as sources of every kind hold them."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

TEXTS = ["red apple", "blue sky, wide", 'a "quoted" word', "line\nbreak"]
LABELS = ["fruit", "sky", "word", "sky"]
PIXELS = np.random.default_rng(0).integers(0, 256, (4, 6, 5, 3), dtype=np.uint8)


def columns(**more):
    return {"input": TEXTS, "target": LABELS, **more}


def png(array):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format="PNG")
    return buffer.getvalue()
