"""FedAvg on every weight of the model, for the comparison of traffic (McMahan et al., AISTATS 2017, arXiv 1602.05629)."""

from __future__ import annotations

from raylora.core.reduce import Reduce, mean
from raylora.core.types import Strategy, Task
from raylora.strategies import options
from raylora.strategies.averaging import EVERYTHING, averaging


def fedavg_full(*, weights: str = "size", reduce: Reduce = mean) -> Strategy:
    """W = sum_k p_k W_k: full fine-tuning, no adapter. Sent each way: every trained weight."""
    options.check(weights=weights)
    return averaging(
        "fedavg_full",
        lambda round: Task(round=round, phases=EVERYTHING, uploads=("*",)),
        ("*",),
        weights=weights,
        reduce=reduce,
        trains="all",
        adapters={},
    )
