"""FedAdam (Reddi et al., ICLR 2021, arXiv 2003.00295), on the factors."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from raylora.core import tree as trees
from raylora.core.reduce import Reduce, mean
from raylora.core.types import State, Strategy, Task, Tree
from raylora.strategies import options
from raylora.strategies.averaging import EVERYTHING, averaging

SecondMoment = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(v, D^2) to the next v."""


def fedadam(
    *,
    server_lr: float = 0.01,
    b1: float = 0.9,
    b2: float = 0.99,
    tau: float = 1e-3,
    weights: str = "size",
    head: str = "shared",
    reduce: Reduce = mean,
) -> Strategy:
    """D = sum_k p_k (w_k - w); m = b1 m + (1 - b1) D; v = b2 v + (1 - b2) D^2; w <- w + eta m / (sqrt(v) + tau), m and v from 0.

    The paper squares D; some code squares m. Traffic as FedIT.
    """
    check_moments(server_lr, b1, b2, tau)
    options.check(weights=weights, head=head)
    return adaptive(
        "fedadam",
        lambda v, square: b2 * v + (1 - b2) * square,
        server_lr=server_lr,
        b1=b1,
        tau=tau,
        weights=weights,
        head=head,
        reduce=reduce,
    )


def check_moments(server_lr: float, b1: float, b2: float, tau: float) -> None:
    """Raise InputError for a rate or a decay out of range."""
    options.number("server_lr", server_lr, 0.0, open_low=True)
    options.number("b1", b1, 0.0, 1.0)
    options.number("b2", b2, 0.0, 1.0)
    options.number("tau", tau, 0.0, open_low=True)


def adaptive(
    name: str, second: SecondMoment, *, server_lr: float, b1: float, tau: float, weights: str, head: str, reduce: Reduce
) -> Strategy:
    """FedOpt with an adaptive server step; `second` is what tells the methods apart."""
    uploads = trees.shared_names(head)

    def server(state: State, step: Tree) -> Mapping[str, Tree]:
        zeros = trees.zeros(step)
        m = trees.weighted_sum([state.trees.get("m", zeros), step], [b1, 1 - b1])
        v = {name: second(np.asarray(old, dtype=np.float64), step[name] ** 2) for name, old in state.trees.get("v", zeros).items()}
        move = {name: m[name] / (np.sqrt(v[name]) + tau) for name in m}
        return {"adapter": trees.add(state.trees["adapter"], move, server_lr), "m": m, "v": v}

    return averaging(
        name,
        lambda round: Task(round=round, phases=EVERYTHING, uploads=uploads),
        uploads,
        weights=weights,
        reduce=reduce,
        server=server,
        product="inexact",
        exempt={"own product": "the server's optimiser takes a step of its own length"},
    )
