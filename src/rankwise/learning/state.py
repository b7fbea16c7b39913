"""The state of a learner as one tree of tensors: banks, edits of the base, head, moments, parts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from rankwise.adapters import Bank, Change, adapter_of, banks_of, is_adapted, learn_base, ledger, place, replay
from rankwise.adapters.store import under
from rankwise.strategies import Phase

if TYPE_CHECKING:
    from rankwise.learning.learner import Learner


def banks(learner: Learner) -> dict[str, Bank]:
    """Return every bank of the learner, by its path in the tree."""
    sites = {f"sites/{name}": bank for name, (_, bank) in banks_of(learner.model).items()}
    return {**sites, **learner.objective.banks()}


def collect(learner: Learner) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return (tensors by path, the list of blocks of each bank)."""
    tensors: dict[str, Tensor] = {}
    blocks: dict[str, Any] = {}
    for path, bank in banks(learner).items():
        held, blocks[path] = bank.state()
        tensors.update(_below(path, held))
    if is_adapted(learner.model):
        tensors.update(_below("shared", adapter_of(learner.model).shared.tensors()))
        tensors.update(_below("edits", ledger(learner.model)))
    if learner.method.live == "base":
        tensors.update(_below("base", {n: t.detach() for n, t in learner.model.state_dict().items()}))
    tensors.update(_below("objective", learner.objective.state()))
    for strategy in learner.strategies:
        tensors.update(_below(f"strategies/{strategy.name}", strategy.state()))
    for name, parameter in learner.live().items():
        for rule in learner.optimizers:
            moments = {k: v for k, v in rule.state.get(parameter, {}).items() if isinstance(v, Tensor)}
            tensors.update(_below(f"optimizer/{name}", moments))
    return tensors, blocks


def put_back(learner: Learner, tensors: Mapping[str, Tensor], blocks: Mapping[str, Any]) -> None:
    """Take back all of it but the moments, which come when the optimisers stand."""
    device = learner.processes.device
    for path, bank in banks(learner).items():
        bank.restore(under(tensors, f"{path}/"), blocks[path])
        bank.to(device)
    if is_adapted(learner.model):
        adapter_of(learner.model).shared.hold(under(tensors, "shared/"))
        replay(learner.model, {k: v.to(device) for k, v in under(tensors, "edits/").items()})
        place(learner.model)
    base = under(tensors, "base/")
    if base:
        learner.model.load_state_dict(base)
        learn_base(learner.model)
    learner.objective.restore(under(tensors, "objective/"))
    for strategy in learner.strategies:
        strategy.restore(under(tensors, f"strategies/{strategy.name}/"))


def put_back_moments(learner: Learner, tensors: Mapping[str, Tensor]) -> None:
    """Take back what the optimisers remember of each parameter."""
    for rule in learner.optimizers:
        owned = {p for group in rule.param_groups for p in group["params"]}
        for name, parameter in learner.live().items():
            held = {k: v.to(parameter.device) for k, v in under(tensors, f"optimizer/{name}/").items()}
            if held and parameter in owned:
                rule.state[parameter] = held


def phase_of(values: Mapping[str, Any]) -> Phase:
    """Make a phase from its JSON form."""
    live = values["live"] if isinstance(values["live"], str) else tuple(values["live"])
    changes = tuple(Change(**{**change, "index": tuple(change["index"])}) for change in values["changes"])
    return Phase(**{**values, "live": live, "changes": changes})


def _below(path: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{path}/{name}": tensor for name, tensor in tensors.items()}
