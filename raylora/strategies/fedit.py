"""FedIT, FedAvg on the factors (Zhang et al., ICASSP 2024, arXiv 2305.05644; McMahan et al., AISTATS 2017)."""

from __future__ import annotations

from raylora.core import tree as trees
from raylora.core.reduce import Reduce, mean
from raylora.core.types import Strategy, Task
from raylora.strategies import options
from raylora.strategies.averaging import EVERYTHING, averaging


def fedit(*, weights: str = "size", head: str = "shared", reduce: Reduce = mean) -> Strategy:
    """A = sum_k p_k A_k, B = sum_k p_k B_k. Inexact: the product of the means is not the mean of the products.

    Sent each way and layer: r (in + out) floats. reduce acts on the factors.
    """
    options.check(weights=weights, head=head)
    uploads = trees.shared_names(head)
    return averaging(
        "fedit",
        lambda round: Task(round=round, phases=EVERYTHING, uploads=uploads),
        uploads,
        weights=weights,
        reduce=reduce,
        product="inexact",
    )
