"""A base: a pretrained encoder, how raw inputs become tensors, and how its states become one feature row an input."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from rankwise.errors import DataError, UsageError, nearest

if TYPE_CHECKING:
    from rankwise.models.language import Language

Modality = Literal["image", "text"]
Encode = Callable[[Sequence[Any] | Tensor], dict[str, Tensor]]
Pool = Callable[[Any, Tensor | None], Tensor]  # (the module's output record, attention mask [N, T] or None) -> [N, dim]


@dataclass(eq=False)
class Backbone:
    """A pretrained encoder with frozen parameters; `module` may be adapted in place, everything else stays as loaded.

    `dim` is the width of a feature row. `fingerprint` names the weights as they were loaded, before any adapter came.
    `arguments` are the keys of a batch that the module is called with; others (labels, row numbers) are left alone.
    """

    name: str
    module: nn.Module = field(repr=False)
    modality: Modality
    dim: int
    fingerprint: str
    encoder: Encode = field(repr=False)
    pool: Pool = field(repr=False)
    arguments: tuple[str, ...] = ("input_ids", "attention_mask", "token_type_ids")
    language: Language | None = field(default=None, repr=False)
    """How it writes answers, where it was loaded with its language head."""
    body: nn.Module | None = field(default=None, repr=False)
    """The part of `module` whose states are pooled; None: all of it."""
    folder: Path | None = None
    """Where it was loaded from."""
    quantize: str | None = None
    """Kind of the 4-bit weights it computes with; None: as they were loaded."""

    def encode(self, inputs: Sequence[Any] | Tensor) -> dict[str, Tensor]:
        """Turn raw inputs into a batch on the CPU: `pixel_values` [N, 3, H, W], or `input_ids` and masks [N, T].

        Pure: it draws nothing, and equal inputs give equal batches. Raises DataError for inputs of another modality.
        """
        return self.encoder(inputs)

    def features(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Map a batch of `encode` (moved to the module's device by the caller) to float32 features [N, dim]."""
        return self.states(batch, hidden=False)[0]

    def states(self, batch: Mapping[str, Tensor], *, hidden: bool = True) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the features, and the states after the embedding and after each layer if `hidden`."""
        known = {key: batch[key] for key in self.arguments if key in batch}
        if not known:
            raise DataError(f"base {self.name!r} takes {self.arguments}; the batch has {sorted(batch)}; use encode()")
        output = (self.body or self.module)(**known, **({"output_hidden_states": True} if hidden else {}))
        features = self.pool(output, known.get("attention_mask")).float()
        return features, tuple(output.hidden_states) if hidden else ()


def fingerprint(module: nn.Module, without: Collection[str] = ()) -> str:
    """Hash every parameter and buffer of `module`: sha256 (hex) over sorted names, dtypes, shapes and bytes.

    `without`: names of tensors that are left out, as an artefact brings its own in their place.
    """
    digest = hashlib.sha256()
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    for name in sorted(tensors.keys() - set(without)):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def freeze(module: nn.Module, source: str) -> None:
    """Put `module` into eval mode without gradients; raise DataError where a weight is not finite."""
    for name, parameter in module.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            raise DataError(f"{source}: weight {name!r} holds values that are not finite; get an undamaged copy")
    module.eval().requires_grad_(False)


def mean_of_tokens(output: Any, mask: Tensor | None) -> Tensor:
    """Average the last states over the real tokens."""
    return output.last_hidden_state.mean(dim=1) if mask is None else averaged(output.last_hidden_state, mask)


def averaged(states: Tensor, mask: Tensor) -> Tensor:
    """Average states [N, T, dim] over the tokens where mask [N, T] is 1: [N, dim]."""
    weight = mask.unsqueeze(-1).to(states.dtype)
    return (states * weight).sum(dim=1) / weight.sum(dim=1).clamp_min(1.0)


def first_token(output: Any, mask: Tensor | None) -> Tensor:
    """Take the state of the first token (the class token of BERT and ViT)."""
    return output.last_hidden_state[:, 0]


def last_token(output: Any, mask: Tensor | None) -> Tensor:
    """Take the state of the last real token, wherever the padding lies."""
    states = output.last_hidden_state
    if mask is None:
        return states[:, -1]
    places = torch.arange(mask.shape[1], device=mask.device)
    return states[torch.arange(len(states), device=states.device), (places * mask).argmax(dim=1)]


def class_and_patches(output: Any, mask: Tensor | None) -> Tensor:
    """Add the class token to the mean of the patch tokens."""
    states = output.last_hidden_state
    return states[:, 0] + states[:, 1:].mean(dim=1)


def patches(output: Any, mask: Tensor | None) -> Tensor:
    """Average the patch tokens, the class token left out."""
    return output.last_hidden_state[:, 1:].mean(dim=1)


def pooled(output: Any, mask: Tensor | None) -> Tensor:
    """Take the output of the model's own pooler."""
    return output.pooler_output


def everywhere(output: Any, mask: Tensor | None) -> Tensor:
    """Average over all places, of tokens [N, T, dim] or of a feature map [N, dim, H, W]."""
    states = output.last_hidden_state
    return states.mean(dim=1) if states.ndim == 3 else states.flatten(2).mean(dim=2)


POOLS: dict[Modality, dict[str, Pool]] = {
    "text": {"mean": mean_of_tokens, "cls": first_token, "last": last_token},
    "image": {"cls": first_token, "mean": patches},
}


def pool_named(pooling: str, modality: Modality, automatic: Pool) -> Pool:
    """Look up a pooling by name; "auto" gives `automatic`. Raises UsageError for a name this modality does not know."""
    choices = {**POOLS[modality], "auto": automatic}
    if pooling not in choices:
        raise UsageError(
            f"pooling {pooling!r} is not known for a base of modality {modality}: {nearest(pooling, choices)}"
        )
    return choices[pooling]
