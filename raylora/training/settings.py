"""What local training needs to know, as plain values: a server states it without loading torch."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a local step needs to know."""

    lr: float
    rounds: int
    batch_size: int
    local_epochs: int | None = 1
    local_steps: int | None = None
    optimiser: str = "adamw"
    weight_decay: float = 0.0
    schedule: str = "constant"
    clip: float | None = None

    def rate(self, round: int) -> float:
        """The learning rate of a round: constant, or a half cosine from `lr` towards zero."""
        return self.lr if self.schedule == "constant" else self.lr * 0.5 * (1 + math.cos(math.pi * round / self.rounds))


@dataclass(frozen=True, kw_only=True)
class CacheSpec:
    """Which features are kept, and where."""

    folder: str
    bound_bytes: int
    first: int
    stage: str
    dtype: str  # in which they are kept: float32, float64, bfloat16
    function: str  # what the network is beside its weights
    views: int | None = None  # random augmentations of an image that are kept; None: the image as it is
