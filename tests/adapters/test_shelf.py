"""A shelf: each row of a batch takes the adapter it names, as if it were alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

import rankwise
from rankwise.adapters import Shelf, detach, is_adapted, thin_of
from rankwise.adapters.shelf import plan
from rankwise.errors import ConflictError, UsageError

NAMES = ("law", "code", "art")


def saved(folder: Path, name: str, rank: int, model: str = "llama", method: str = "lora", **settings) -> Path:
    adapted = tiny.MODELS[model]()
    rankwise.adapt(adapted, method, rank=rank, seed=rank, **settings)
    tiny.wake(adapted, seed=rank)
    rankwise.save(adapted, folder / name)
    return folder / name


def alone(path: Path, batch: dict[str, Tensor], model: str) -> Tensor:
    return tiny.logits(rankwise.load(tiny.MODELS[model](), path), batch)


def batch_of(model: str, rows: int) -> dict[str, Tensor]:
    return {name: torch.cat([tensor] * rows)[:rows] for name, tensor in tiny.fed(model).items()}


@pytest.mark.parametrize("model", ["llama", "gpt2"])
@pytest.mark.parametrize(
    "rows",
    [
        ("law", "code", "art"),
        ("art", "law", "art", "law"),
        ("code",) * 5 + ("law",),
        (None, "law", None, "art", "art", "art", "code"),
        (None, None),
    ],
)
def test_each_row_is_as_with_its_adapter_alone(tmp_path, model, rows):
    paths = {name: saved(tmp_path, name, 2 + i, model) for i, name in enumerate(NAMES)}
    base = tiny.MODELS[model]()
    shelf, batch = rankwise.shelf(base, paths), batch_of(model, len(rows))
    bare = tiny.logits(tiny.MODELS[model](), batch)
    with torch.no_grad(), shelf.rows(rows):
        found = tiny.logits(base, batch)
    expected = {name: alone(path, batch, model) for name, path in paths.items()} | {None: bare}
    for row, name in enumerate(rows):
        torch.testing.assert_close(found[row], expected[name][row], rtol=2e-5, atol=2e-6)
    assert torch.equal(tiny.logits(base, batch), bare) and not is_adapted(base)


def test_some_sites_only_and_a_scale():
    base = tiny.mlp()
    shelf, x = Shelf(base), tiny.fed("mlp")["input"]
    whole, part = tiny.mlp(), tiny.mlp()
    first, *_ = [name for name, module in part.named_modules() if isinstance(module, nn.Linear)]
    rankwise.adapt(whole, "lora", rank=2, scale=0.5)
    rankwise.adapt(part, "codyra", rank=3, sites=[first])
    for i, model in enumerate((whole, part)):
        tiny.wake(model)
        shelf.add(str(i), thin_of(model))
    with shelf.rows(["0", "1"]):
        found = base(x[:2])
    torch.testing.assert_close(found[0], whole(x[:2])[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found[1], part(x[:2])[1], rtol=1e-5, atol=1e-6)


def test_an_adapter_of_peft_stands_beside_ours(tmp_path):
    torch.manual_seed(0)
    other = get_peft_model(tiny.llama(), LoraConfig(r=3, target_modules="all-linear", init_lora_weights=False))  # pyright: ignore[reportArgumentType]
    other.save_pretrained(tmp_path / "peft")
    base, batch = tiny.llama(), batch_of("llama", 2)
    shelf = rankwise.shelf(base, {"ours": saved(tmp_path, "ours", 2), "theirs": tmp_path / "peft"})
    with torch.no_grad(), shelf.rows(["theirs", "ours"]):
        found = tiny.logits(base, batch)
    torch.testing.assert_close(found[0], tiny.logits(other, batch)[0], rtol=2e-5, atol=2e-6)


def test_rows_nest_drop_and_close(tmp_path):
    base, x = tiny.mlp(), tiny.fed("mlp")["input"][:2]
    paths = {name: saved(tmp_path, name, 2 + i, "mlp") for i, name in enumerate(NAMES[:2])}
    shelf, bare = rankwise.shelf(base, paths), base(x)
    with shelf.rows(["law", "code"]):
        outer = base(x)
        with shelf.rows(["code", "law"]):
            assert not torch.equal(base(x), outer)
        assert torch.equal(base(x), outer)
    shelf.drop("code")
    with pytest.raises(UsageError, match="no adapter 'code' is held; .*law"), shelf.rows(["code"]):
        pass
    shelf.close()
    assert torch.equal(base(x), bare) and not any(module._forward_hooks for module in base.modules())


def test_what_is_refused(tmp_path):
    base, x = tiny.mlp(), tiny.fed("mlp")["input"]
    shelf = rankwise.shelf(base, {"law": saved(tmp_path, "law", 2, "mlp")})
    with pytest.raises(UsageError, match="adapter 'law' is held already"):
        shelf.add("law", ())
    with pytest.raises(UsageError, match="name one for each row"), shelf.rows(["law"] * 3):
        base(x[:2])
    with pytest.raises(UsageError, match="depends on the input"):
        rankwise.shelf(tiny.mlp(), {"m": saved(tmp_path, "m", 2, "mlp", "mora")})
    with pytest.raises(UsageError, match="changes tensors of the base"):
        rankwise.shelf(tiny.mlp(), {"p": saved(tmp_path, "p", 2, "mlp", "pissa")})
    with pytest.raises(ConflictError, match="carries an adapter already"):
        Shelf(rankwise.adapt(tiny.mlp(), "lora"))
    words = rankwise.adapt(tiny.gpt2(), "lora", sites=["wte"])
    with pytest.raises(UsageError, match="no linear layer"):
        Shelf(detach(tiny.gpt2())).add("words", thin_of(words))


@pytest.mark.parametrize("names", [["a"] * 7 + ["b"], list("abcdefgh") * 4, ["a"] * 25 + list("bcdefgh"), list("abca")])
def test_places_are_at_most_twice_as_many_as_rows_and_adapters(names):
    found = plan(names, torch.device("cpu"))
    x = torch.arange(len(names), dtype=torch.float32)[:, None, None].expand(-1, 3, 2)
    laid = found.spread(x)
    assert laid.shape[0] * laid.shape[1] <= 2 * 3 * (len(names) + len(set(names)))
    assert torch.equal(found.gather(laid, x), x)
    size = laid.shape[1] // 3
    for group, name in zip(laid, found.groups, strict=True):
        assert {names[int(row)] for row in group[:, 0]} == {name} and len(group) == 3 * size
