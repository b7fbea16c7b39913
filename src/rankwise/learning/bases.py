"""Which modules an adapter can go on, and what an artefact says of the base under it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from rankwise.adapters import adapter_of, bare, beside, refuse_adapted
from rankwise.errors import ConflictError, StorageError, UsageError
from rankwise.models import fingerprint, form_of_class


def refuse_unfit(base: object) -> None:
    """Raise unless `base` is a module that an adapter can go on: none of ours is on it, and none of PEFT's."""
    if not isinstance(base, nn.Module):
        raise UsageError(
            f"the base must be a torch module, not {base!r:.80}; load it first, as with transformers' from_pretrained"
        )
    refuse_adapted(base)
    if any(type(module).__module__.partition(".")[0] == "peft" for module in base.modules()):
        raise ConflictError(
            "this model carries an adapter of PEFT's; call model.merge_and_unload() and take what it returns, or put "
            "the checkpoint on a fresh base with rankwise.load"
        )


def base_under(model: nn.Module) -> dict[str, Any]:
    """Return what an artefact says of the base under the adapter of `model`.

    Its fingerprint leaves out the tensors that the artefact brings in their place (`without`), whatever they were.
    """
    whole = all(parameter.is_floating_point() for parameter in model.parameters())
    form = form_of_class(type(model).__name__)
    quantize = {} if whole else {"quantize": "nf4"}
    return {**_named(model), **quantize, **({} if form is None else {"form": form})}


def _named(model: nn.Module) -> dict[str, Any]:
    record = adapter_of(model).record
    if "fingerprint" in record:  # taken when it was adapted, before any edit
        return {"fingerprint": record["fingerprint"]}
    brought = sorted(beside(model))
    with bare(model) as base:
        return {"fingerprint": fingerprint(base, brought), **({"without": brought} if brought else {})}


def refuse_other(path: Path, named: Mapping[str, Any], base: nn.Module) -> None:
    """Raise StorageError unless `base` has the weights that the artefact in `path` names as those it was learnt on."""
    brought = named.get("without", [])
    if not isinstance(brought, list) or not all(isinstance(name, str) for name in brought):
        raise StorageError(f"{path}: base.without = {brought!r} is no list of names; save the adapter again")
    expected, found = str(named.get("fingerprint")), fingerprint(base, brought)
    if expected != found:
        raise StorageError(
            f"{path}: learnt on a base with fingerprint {expected[:12]}, this one has {found[:12]}; load the same "
            "weights, in the same precision"
        )
