"""FLoRA, stacking (Wang et al., NeurIPS 2024, arXiv 2409.05976)."""

from __future__ import annotations

from raylora.core.reduce import Reduce, mean
from raylora.core.types import Strategy
from raylora.strategies import options
from raylora.strategies.folding import folding


def flora(*, weights: str = "size", head: str = "shared", reduce: Reduce = mean, seed: int = 0) -> Strategy:
    """B = [B_1 ... B_K], A = [p_1 A_1; ...; p_K A_K], so that B A = sum_k p_k B_k A_k for any ranks; merged into W_0, and the pair
    starts again. reduce: a `Weighing`, on the products. Traffic as in `folding`.
    """
    options.check(weights=weights, head=head)
    return folding(
        "flora", lambda state, updates: ([1.0] * len(updates), {}), seed=seed, head=head, weights=weights, reduce=reduce, product="exact"
    )
