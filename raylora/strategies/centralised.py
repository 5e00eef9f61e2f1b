"""The upper bound: one client that holds everybody's training data."""

from __future__ import annotations

from dataclasses import replace

from raylora.core.types import Strategy
from raylora.strategies.fedit import fedit


def centralised() -> Strategy:
    """FedIT with one client. Not a federated method: the data are pooled."""
    return replace(fedit(), name="centralised", pools_data=True, product="")
