"""FedProx (Li et al., MLSys 2020, arXiv 1812.06127)."""

from __future__ import annotations

from raylora.core import tree as trees
from raylora.core.reduce import Reduce, mean
from raylora.core.types import Phase, Strategy, Task
from raylora.strategies import options
from raylora.strategies.averaging import averaging


def fedprox(*, mu: float = 0.01, weights: str = "size", head: str = "shared", reduce: Reduce = mean) -> Strategy:
    """The local loss plus (mu / 2) ||w - w_t||^2 over all that is trained, on the factors, not on their product; then the mean as in
    `fedit`. w_t is what a client starts the round with: of a private head its own."""
    options.check(weights=weights, head=head)
    options.number("mu", mu, 0.0)
    uploads = trees.shared_names(head)
    phases = (Phase(trains=("*",), terms={"prox": mu}),)
    return averaging(
        "fedprox",
        lambda round: Task(round=round, phases=phases, uploads=uploads),
        uploads,
        weights=weights,
        reduce=reduce,
        product="inexact",
    )
