"""What the tests of this folder share: a laboratory on small bases, made once."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory):
    """Small runs and learners, on images or on texts."""
    from lab import Lab

    return Lab(tmp_path_factory.mktemp("lab"))
