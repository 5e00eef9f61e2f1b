"""FFA-LoRA, freeze A (Sun et al., ICLR 2024, arXiv 2403.12313)."""

from __future__ import annotations

from raylora.core import tree as trees
from raylora.core.reduce import Reduce, mean
from raylora.core.types import Phase, Strategy, Task
from raylora.strategies import options
from raylora.strategies.averaging import averaging, in_units


def ffa_lora(*, weights: str = "size", head: str = "shared", reduce: Reduce = mean) -> Strategy:
    """A is random, frozen and the same at all clients (from the seed: it is never sent); B = sum_k p_k B_k, so that
    sum_k p_k B_k A is exact. Noise for privacy enters linearly. Sent each way and layer: r out floats.
    """
    options.check(weights=weights, head=head)
    uploads = trees.shared_names(head, "*.lora_B")
    phases = (Phase(trains=("*", "!*.lora_A")),)
    return in_units(
        averaging(
            "ffa_lora",
            lambda round: Task(round=round, phases=phases, uploads=uploads),
            uploads,
            weights=weights,
            reduce=reduce,
            product="exact",
        )
    )
