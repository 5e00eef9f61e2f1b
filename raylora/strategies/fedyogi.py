"""FedYogi (Reddi et al., ICLR 2021, arXiv 2003.00295), on the factors."""

from __future__ import annotations

import numpy as np

from raylora.core.reduce import Reduce, mean
from raylora.core.types import Strategy
from raylora.strategies import options
from raylora.strategies.fedadam import adaptive, check_moments


def fedyogi(
    *,
    server_lr: float = 0.01,
    b1: float = 0.9,
    b2: float = 0.99,
    tau: float = 1e-3,
    weights: str = "size",
    head: str = "shared",
    reduce: Reduce = mean,
) -> Strategy:
    """As `fedadam` with v = v - (1 - b2) D^2 sign(v - D^2)."""
    check_moments(server_lr, b1, b2, tau)
    options.check(weights=weights, head=head)
    return adaptive(
        "fedyogi",
        lambda v, square: v - (1 - b2) * square * np.sign(v - square),
        server_lr=server_lr,
        b1=b1,
        tau=tau,
        weights=weights,
        head=head,
        reduce=reduce,
    )
