"""FedSA-LoRA, share A (Guo et al., ICLR 2025, arXiv 2410.01463)."""

from __future__ import annotations

from raylora.core import tree as trees
from raylora.core.reduce import Reduce, mean
from raylora.core.types import Strategy, Task
from raylora.strategies import options
from raylora.strategies.averaging import EVERYTHING, averaging


def fedsa_lora(*, share: str = "A", weights: str = "size", head: str = "shared", reduce: Reduce = mean) -> Strategy:
    """Both factors are trained; A = sum_k p_k A_k is shared (general), B_k stays (specific). A new client starts from B = 0.

    share: the factor that is shared. Sent each way and layer: r in floats (A), r out (B).
    """
    options.check(weights=weights, head=head)
    options.one_of("share", share, ("A", "B"))
    uploads = trees.shared_names(head, f"*.lora_{share}")
    return averaging(
        "fedsa_lora", lambda round: Task(round=round, phases=EVERYTHING, uploads=uploads), uploads, weights=weights, reduce=reduce
    )
