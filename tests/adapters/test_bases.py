"""What a base may be: quantised, asked for its weight, fused, in another type of number."""

from __future__ import annotations

import pytest
import tiny
import torch
from tiny import adapted, gradients, live
from torch import Tensor, nn

from rankwise.adapters import Change, banks_of, detach, fold, grow
from rankwise.errors import UsageError


class Sealed(nn.Linear):
    """A quantised base, as far as its user can tell: it can be called, and nobody may look at its weight."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__(n_in, n_out, bias=False)
        codes = torch.randint(-8, 8, (n_out, n_in), generator=torch.Generator().manual_seed(n_in))
        del self._parameters["weight"]
        self.register_buffer("codes", codes.to(torch.int8))

    def __getattr__(self, name: str):
        if name == "weight" and "codes" in self._buffers:
            raise RuntimeError("the weight was read")
        return super().__getattr__(name)

    def forward(self, input: Tensor) -> Tensor:
        return input @ (self.get_buffer("codes").to(input.dtype) * 0.1).T


def test_a_quantised_base_trains_because_it_is_only_called():
    model = adapted(nn.Sequential(Sealed(4, 6), nn.Tanh(), Sealed(6, 2)), awake=False)
    x, target = torch.randn(32, 4, generator=torch.Generator().manual_seed(0)), torch.ones(32, 2)
    optimizer, losses = torch.optim.Adam(live(model).values(), lr=0.05), []
    for _ in range(40):
        loss = nn.functional.mse_loss(model(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]
    with pytest.raises(UsageError, match="load the base unquantised"):
        fold(model)
    detach(model)
    assert isinstance(model.get_submodule("0"), Sealed)


class Asking(nn.Module):
    """As T5 does: looks at a projection's weight and sizes before it calls it."""

    def __init__(self) -> None:
        super().__init__()
        self.wo = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.wo(x.to(self.wo.weight.dtype)) * self.wo.out_features


def test_what_the_model_asks_of_a_module_is_answered_by_its_base():
    model = adapted(tiny.seeded(Asking))
    assert model(torch.ones(1, 3, dtype=torch.float64)).dtype == torch.float32
    with pytest.raises(AttributeError, match="nothing"):
        _ = model.get_submodule("wo").nothing


@pytest.mark.parametrize("grad", [False, True])
def test_torchs_fused_layers_do_not_pass_the_adapter_by(grad):
    model = tiny.seeded(lambda: nn.TransformerEncoderLayer(8, 2, 12, batch_first=True))
    x = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0))
    with torch.set_grad_enabled(grad):
        before = model(x)
        assert not torch.allclose(adapted(model)(x), before, atol=1e-3)


def test_a_base_in_bfloat16_takes_a_float32_adapter():
    model, batch = adapted(tiny.llama().bfloat16()), tiny.fed("llama")
    assert {p.dtype for p in live(model).values()} == {torch.float32}
    out = tiny.forward(model, batch)
    assert out.dtype == torch.bfloat16
    out.float().square().mean().backward()
    assert all(g.dtype == torch.float32 and bool(g.isfinite().all()) and g.abs().sum() > 0 for g in gradients(model))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_to_casts_blocks_with_the_base_and_later_blocks_follow(dtype):
    model = adapted(tiny.mlp(), blocks="ab").to(dtype)
    tensors = [t for _, bank in banks_of(model).values() for t in (*bank.parameters(), *bank.buffers())]
    assert {t.dtype for t in tensors} == {dtype}
    grow(model, [Change("freeze"), Change("append", "c", 1)], 0)
    assert model(torch.ones(2, 5, dtype=dtype)).dtype == dtype
