"""What can be set about SEMA's growth."""

from __future__ import annotations

from dataclasses import dataclass

from rankwise.config import Count, Positive


@dataclass(frozen=True)
class ExpansionSettings:
    """[adapter.dynamics] of SEMA."""

    threshold: Positive = 2.0
    """Mean z-score above which features are new to a descriptor. Lower: more adapters; below 0.8 every task adds. The
    paper's 1 to 2 go with short training of descriptors; converged ones need more."""
    scan_batch: Count = 128
    """Examples whose z-scores are averaged before they are compared."""
    window: Count = 500
    """Last training errors of a descriptor that make up its mean and spread."""
    descriptor_share: Positive = 1.0
    """Steps of a descriptor's training, as a multiple of the task's. Paper: 1 to 4."""
    descriptor_lr: Positive = 1e-2
    """Learning rate of descriptors."""
