"""What learns of the base beside the factors goes with the adapter; copies, wrappers and pickles lose nothing."""

from __future__ import annotations

import copy
import io
import json
import pickle
import weakref

import pytest
import tiny
import torch
from torch import Tensor, nn

import rankwise
from rankwise.adapters import adapter_of, bare, beside, is_adapted, unwrapped
from rankwise.errors import StorageError, UsageError
from rankwise.models import fingerprint
from rankwise.storage import write_folder

X = torch.linspace(-1, 1, 6 * 3 * 8 * 8).sin().view(6, 3, 8, 8)


def conv() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5))


def learn(model: nn.Module, x: Tensor, **rule) -> nn.Module:
    step = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, **rule)
    for _ in range(2):
        step.zero_grad()
        model.train()(x).square().mean().backward()
        step.step()
    return model.eval()


def headed(**rule) -> nn.Module:
    """The adapter on the first layer, the last one learning beside it."""
    model = rankwise.adapt(tiny.mlp(), "lora", rank=2, sites=["0"])
    model.get_submodule("2").requires_grad_(True)
    return learn(model, tiny.fed("mlp")["input"], **rule)


@pytest.mark.parametrize("frozen", [False, True])
def test_a_head_that_learns_goes_with_the_adapter_onto_any_base_that_has_the_rest(tmp_path, frozen):
    model, x = headed(foreach=True), tiny.fed("mlp")["input"]
    model.get_submodule("2").requires_grad_(not frozen)
    rankwise.save(model, tmp_path / "a")
    other = tiny.mlp()
    with torch.no_grad():
        other.get_submodule("2").get_parameter("weight").add_(1)  # a head starts elsewhere each time
    loaded = rankwise.load(other, tmp_path / "a")
    assert torch.equal(loaded(x), model(x))
    rankwise.save(loaded, tmp_path / "b")
    for file in ("adapter.json", "adapter.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    another = tiny.mlp()
    with torch.no_grad():
        another.get_submodule("0").get_parameter("weight").add_(1)
    with pytest.raises(StorageError, match="fingerprint"):
        rankwise.load(another, tmp_path / "a")


def test_a_head_that_a_fused_optimizer_moves_goes_too(tmp_path):
    model, x = headed(fused=True), tiny.fed("mlp")["input"]
    rankwise.save(model, tmp_path / "a")
    assert torch.equal(rankwise.load(tiny.mlp(), tmp_path / "a")(x), model(x))


def test_a_head_that_learns_reaches_peft(tmp_path):
    peft = pytest.importorskip("peft")
    model, x = headed(), tiny.fed("mlp")["input"]
    rankwise.export(model, tmp_path / "a")
    for found in (
        rankwise.load(tiny.mlp(), tmp_path / "a"),
        peft.PeftModel.from_pretrained(tiny.mlp(), tmp_path / "a"),
    ):
        assert torch.allclose(found(x), model(x), atol=1e-6)


@pytest.mark.parametrize("method", ["lora", "pissa"])
def test_running_statistics_go_with_the_adapter(tmp_path, method):
    model = learn(rankwise.adapt(conv(), method, rank=2, sites=["0", "4"]), X)
    assert set(beside(model)) == {"1.running_mean", "1.running_var", "1.num_batches_tracked"}
    rankwise.save(model, tmp_path / "a")
    assert torch.equal(rankwise.load(conv(), tmp_path / "a").eval()(X), model(X))


@pytest.mark.parametrize("method", ["lora", "pissa"])
def test_an_untouched_base_and_one_that_only_the_method_edits_bring_nothing(method):
    model = rankwise.adapt(conv(), method, rank=2, sites=["0", "4"])
    assert beside(model) == beside(copy.deepcopy(model)) == {}
    assert beside(model.double()) == {}


def test_an_edited_weight_that_learns_too_is_refused(tmp_path):
    model = rankwise.adapt(conv(), "pissa", rank=2, sites=["0", "4"]).requires_grad_(True)
    for write in (rankwise.save, rankwise.export):
        with pytest.raises(UsageError, match=r"'0\.weight'.*keep it frozen"):
            write(model, tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_names_left_out_of_a_fingerprint_must_be_names(tmp_path):
    rankwise.save(headed(), tmp_path / "a")
    record = json.loads((tmp_path / "a" / "adapter.json").read_text())
    assert record["base"]["without"] == ["2.bias", "2.weight"]
    record["base"]["without"] = 3
    tensors = (tmp_path / "a" / "adapter.safetensors").read_bytes()
    files = {"adapter.json": json.dumps(record).encode(), "adapter.safetensors": tensors}
    write_folder(tmp_path / "a", files, kind="adapter")
    with pytest.raises(StorageError, match=r"base\.without = 3"):
        rankwise.load(tiny.mlp(), tmp_path / "a")


@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel, lambda m: nn.DataParallel(nn.DataParallel(m))])
def test_what_torch_wraps_is_saved_under_its_own_names(tmp_path, wrap):
    model, x = rankwise.adapt(tiny.mlp(), "lora", rank=2), tiny.fed("mlp")["input"]
    tiny.wake(model)
    before, wrapped = model(x), wrap(model)
    assert unwrapped(wrapped) is model
    rankwise.save(wrapped, tmp_path / "a")
    rankwise.export(wrapped, tmp_path / "b")
    for folder in ("a", "b"):
        assert torch.allclose(rankwise.load(tiny.mlp(), tmp_path / folder)(x), before, atol=1e-6)
    with rankwise.learning(wrapped, "ewc", optimizer=torch.optim.SGD(wrapped.parameters())) as hooks:
        assert set(hooks.live()) == {name for name, p in model.named_parameters() if p.requires_grad}
    assert rankwise.merge(wrapped) is model and not is_adapted(model)


def test_a_module_of_ones_own_called_module_is_no_wrapper():
    class Mine(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = tiny.mlp()

    for model in (Mine(), nn.Sequential(nn.Linear(2, 2))):
        assert unwrapped(model) is model


@pytest.mark.parametrize("method", ["lora", "lora-append", "mora", "pissa", "vera"])
def test_copies_and_pickles_compute_the_same_and_know_what_has_learnt(tmp_path, method):
    model = rankwise.adapt(tiny.mlp(), method, rank=2, sites=["0"])
    model.get_submodule("2").requires_grad_(True)
    x = tiny.fed("mlp")["input"]
    learn(model, x).get_submodule("2").requires_grad_(False)
    model(x)  # a graph is under way
    torch.save(model, io.BytesIO())
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(x), model(x))
        assert set(beside(other)) == set(beside(model)) == {"2.weight", "2.bias"}


def test_a_copy_takes_no_graph_along():
    with pytest.warns(UserWarning, match="its dynamics 'sema'"):
        model = rankwise.adapt(tiny.vit(), "sema", rank=2)
    tiny.wake(model)
    kept = tiny.forward(model, tiny.fed("vit"))
    assert kept.requires_grad and any(t.requires_grad for t in adapter_of(model).inputs.values())
    other = copy.deepcopy(model)
    assert adapter_of(other).inputs == {}
    assert torch.equal(tiny.logits(other, tiny.fed("vit")), tiny.logits(model, tiny.fed("vit")))


def test_looking_at_a_base_keeps_no_parameter_alive():
    model = rankwise.adapt(tiny.mlp(), "lora", rank=2, sites=["0"])
    gone = weakref.ref(model.get_submodule("2").get_parameter("weight"))
    model.get_submodule("2").weight = nn.Parameter(torch.zeros(3, 7), requires_grad=False)
    assert gone() is None


def test_what_learnt_before_it_was_adapted_learns_again_afterwards():
    base = tiny.mlp()
    base.get_submodule("2").requires_grad_(False)
    flags = {name: p.requires_grad for name, p in base.named_parameters()}
    assert set(flags.values()) == {True, False}
    merged = rankwise.merge(rankwise.adapt(base, "lora", rank=2))
    assert {name: p.requires_grad for name, p in merged.named_parameters()} == flags


def test_the_fingerprint_of_a_base_with_moved_tensors_is_that_of_the_rest():
    model = headed()
    with bare(model) as base:
        assert fingerprint(base) != fingerprint(tiny.mlp())
        names = ["2.weight", "2.bias"]
        assert fingerprint(base, names) == fingerprint(tiny.mlp(), names)
