"""The lower bound: every client trains alone."""

from __future__ import annotations

from raylora.core.types import Strategy, Task
from raylora.strategies.averaging import EVERYTHING, averaging


def local() -> Strategy:
    """W_k = W_0 + s B_{l,k} A_{l,k}, and a head of its own; no array is sent in either direction."""
    return averaging("local", lambda round: Task(round=round, phases=EVERYTHING), (), adapters={"local": None})
