"""What clients are asked beside their rounds, and what they answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from raylora.core.types import ClientState, ClientUpdate, Tree


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A client's round, as the driver gets it: only `update` is traffic."""

    update: ClientUpdate
    state: ClientState
    seconds: float
    refused: str | None = None  # why the server does not take the update


@dataclass(frozen=True, kw_only=True)
class Scored:
    """One model to be scored on some clients' patients."""

    model_of: str
    tree: Tree
    gates: Mapping[str, float] = field(default_factory=dict)
    data_of: tuple[str, ...] = ()


EvalRow = tuple[str, str, str, str, str, str, float]
"""model_of, data_of, patient, frame, structure, metric, value"""
