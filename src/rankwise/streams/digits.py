"""The embedded image set: scikit-learn's handwritten digits, 1797 pictures of 8 x 8 (UCI, Alpaydin and Kaynak 1998)."""

from __future__ import annotations

import numpy as np
import sklearn.datasets
import torch

from rankwise.streams.digests import rows_sha256
from rankwise.streams.rows import Rows
from rankwise.streams.sampling import generator, stratified

TEST_ROWS = 400
TEST_SEED = 1797
"""Seed of the train/test cut: fixed, so that every run is scored on the same pictures whatever its own seed."""


def digits() -> tuple[Rows, Rows, dict[str, int | str]]:
    """Train rows, test rows and how they were cut: 1397 + 400, stratified; values 0..16 become uint8 0..255."""
    images, target = _pictures()
    labels = target.tolist()
    files = ({"name": "digits", "sha256": rows_sha256(images, labels), "rows": len(labels)},)
    names = tuple(str(digit) for digit in range(10))
    rows = Rows(images, labels, torch.arange(len(labels)), "image", "digits", names, {}, files)
    test = stratified(target, TEST_ROWS, generator(TEST_SEED, "test"))
    train = np.setdiff1d(np.arange(len(labels)), test)
    return (
        rows.take(train.tolist()),
        rows.take(test.tolist()),
        {"source": "digits", "rows": TEST_ROWS, "seed": TEST_SEED},
    )


def _pictures() -> tuple[torch.Tensor, np.ndarray]:
    flat, target = sklearn.datasets.load_digits(return_X_y=True)
    scaled = np.rint(np.asarray(flat) * (255 / 16)).astype(np.uint8)
    return torch.from_numpy(scaled.reshape(-1, 8, 8)), np.asarray(target).astype(np.int64)
