"""Class names as classifier rows: the frozen language targets of LingoCL (arXiv 2403.16124)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from rankwise.adapters.inits import orthogonal
from rankwise.models import Backbone, load_backbone
from rankwise.seeds import generator


@torch.no_grad()
def name_rows(backbone: Backbone, names: Sequence[str], seed: int) -> Tensor:
    """Embed class names as unit rows [len(names), backbone.dim].

    A text base embeds them itself, any other through MiniLM (extra `text`), carried to the base's width by a fixed
    orthonormal map drawn from `seed`. Rows are centred first: raw sentence embeddings of similar names nearly coincide.
    """
    reader = backbone if backbone.modality == "text" else load_backbone("minilm")
    rows = reader.features(reader.encode([name.replace("_", " ") for name in names]))
    rows = F.normalize(rows - rows.mean(0, keepdim=True), dim=-1)
    if reader.dim != backbone.dim:
        rows = rows @ orthogonal(reader.dim, backbone.dim, generator(seed, "names"))
    return F.normalize(rows, dim=-1)
