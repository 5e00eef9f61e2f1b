"""SDFLoRA, a shared and a private module under mixed ranks (Shen et al. 2026, arXiv 2601.11219)."""

from __future__ import annotations

from raylora.core.reduce import Reduce, mean
from raylora.core.types import Strategy
from raylora.strategies import options
from raylora.strategies.flexlora import redistribution


def sdflora(*, local_rank: int | None = None, weights: str = "size", head: str = "shared", reduce: Reduce = mean) -> Strategy:
    """W_k = W_0 + s B_k A_k + s B_{l,k} A_{l,k}, trained together; only the shared module is stacked, sum_k p_k s_k B_k A_k, and
    compressed again by SVD to each client's rank; the private one never leaves.

    local_rank: of the private module (None: lora.rank). The published summary leaves the weights open: sizes are a default of ours.
    reduce: a `Weighing`, on the products. Traffic as `flexlora`.
    """
    options.check(weights=weights, head=head)
    options.rank("local_rank", local_rank)
    return redistribution("sdflora", weights=weights, head=head, reduce=reduce, adapters={"": None, "local": local_rank})
