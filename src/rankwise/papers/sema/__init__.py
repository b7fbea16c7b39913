"""SEMA: adapters beside the last blocks' MLPs that multiply only where the features are new (arXiv 2403.18886).

    h_k = U_k relu(D_k x + b_k) + c_k,    w = softmax(router of mean x),    y = MLP(x) + s sum_k w_k h_k
    a task begins:  z_k = |e_k - mu_k| / sigma_k;  min_k z_k > threshold at a block: it gets one adapter more

| symbol | shape | meaning |
|---|---|---|
| D_k, U_k | [r, in], [out, r] | adapter k beside the MLP of a block |
| e_k | [n] | error of adapter k's autoencoder on the mean token; mu_k, sigma_k are its mean and spread in training |

Changed from the paper: the run's own rule (AdamW unless set) in place of SGD with momentum 0.9 and decay 5e-4. In a
base with dropout mu_k and sigma_k are those of training mode, so that z is larger in a scan.
"""

from __future__ import annotations

from rankwise.learning.recipe import Method
from rankwise.papers.sema.branch import Modular
from rankwise.papers.sema.expansion import Expansion

METHOD = Method(
    slug="sema",
    title="SEMA: modular adapters, added where features are new",
    paper="arXiv 2403.18886 (CVPR 2025)",
    axis="form and growth: bottleneck adapters beside the MLP, on demand",
    form=Modular,
    dynamics=Expansion,
    growth="planned",
    kinds=("linear", "transposed"),
    identity_at_append="moves",
    mergeable=False,
    peft=None,
    parameters="rank * (in + out + 1) + out + (latent + 1) * (2 * in + 1) a site and adapter; without the last term "
    "where it may not expand",
    refuses=("merge: hidden units and router depend on the input", "embedding and convolution sites: no feature row"),
    defaults={"adapter": {"sites": "mlp-span", "rank": 16}},
)
