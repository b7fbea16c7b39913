"""Every start of factors with every method: the base's output stays what it was, or the start is refused by name."""

from __future__ import annotations

import pytest
import torch
from loading import benchmark
from transformers import ViTConfig, ViTModel

from rankwise import papers
from rankwise.adapters import is_adapted
from rankwise.adapters.inits import INITS
from rankwise.api import adapt
from rankwise.errors import UsageError

TINY = benchmark("composition").TINY
METHODS = [slug for slug in papers.slugs() if papers.method(slug).live == "adapter"]
STARTS = sorted({*INITS, *(papers.method(slug).init.name for slug in METHODS)})


def base() -> ViTModel:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return ViTModel(ViTConfig(**TINY, image_size=8, patch_size=4), add_pooling_layer=False).eval()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("start", STARTS)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_start_leaves_the_output_alone_or_is_refused(start, method):
    model, images = base(), torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = model(images).last_hidden_state
    try:
        model = adapt(model, method, rank=2, init=start)
    except UsageError as error:
        assert "init" in str(error), error
        assert papers.method(method).init.name != start
        return
    assert is_adapted(model)
    with torch.no_grad():
        after = model.eval()(images).last_hidden_state
    assert (after - before).norm() <= 1e-4 * before.norm()
