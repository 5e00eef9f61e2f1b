"""FedAvgM, server momentum (Hsu et al. 2019, arXiv 1909.06335), on the factors."""

from __future__ import annotations

from collections.abc import Mapping

from raylora.core import tree as trees
from raylora.core.reduce import Reduce, mean
from raylora.core.types import State, Strategy, Task, Tree
from raylora.strategies import options
from raylora.strategies.averaging import EVERYTHING, averaging


def fedavgm(*, b1: float = 0.9, server_lr: float = 1.0, weights: str = "size", head: str = "shared", reduce: Reduce = mean) -> Strategy:
    """D = sum_k p_k (w_k - w); m = b1 m + (1 - b1) D, m = D in round 0; w <- w + eta m. Traffic as FedIT."""
    options.check(weights=weights, head=head)
    options.number("b1", b1, 0.0, 1.0)
    options.number("server_lr", server_lr, 0.0, open_low=True)
    uploads = trees.shared_names(head)

    def server(state: State, step: Tree) -> Mapping[str, Tree]:
        m = trees.weighted_sum([state.trees["m"], step], [b1, 1 - b1]) if "m" in state.trees else step
        return {"adapter": trees.add(state.trees["adapter"], m, server_lr), "m": m}

    return averaging(
        "fedavgm",
        lambda round: Task(round=round, phases=EVERYTHING, uploads=uploads),
        uploads,
        weights=weights,
        reduce=reduce,
        server=server,
        product="inexact",
    )
