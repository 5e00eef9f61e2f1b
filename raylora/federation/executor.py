"""Clients in this process, one after the other: for tests, debugging and the smallest experiments."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from raylora.core.types import ClientState
from raylora.federation.answers import Outcome, Scored
from raylora.federation.host import Host
from raylora.federation.rounds import Rows, Stack
from raylora.federation.stacking import Probe


class InProcess:
    """An `Executor` over one `Host`."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.stack = 1

    def train(self, stacks: Sequence[Stack]) -> Iterator[Outcome]:
        for stack in stacks:
            yield from self.host.train([client for client, _ in stack], [broadcast for _, broadcast in stack])

    def arrange(self, stack: int) -> None:
        self.stack = stack

    def probe(self, stack: int) -> Probe:
        return self.host.probe(stack)

    def room(self) -> tuple[int, float]:
        return 1, self.host.memory_bytes(1)

    def evaluate(self, requests: Sequence[Scored], split: str, *, full: bool) -> Rows:
        return lambda: sorted(self.host.evaluate(requests, split, full=full, stack=self.stack), key=lambda row: row[:6])

    def predictions(self, request: Scored, client: str, patient: str) -> dict[str, np.ndarray]:
        return self.host.predictions(request, client, patient)

    def set_base(self, weights: Mapping[str, np.ndarray]) -> None:
        self.host.set_base(weights)

    def restore(self, states: Mapping[str, ClientState]) -> None:
        self.host.restore(states)

    def describe(self) -> list[dict[str, object]]:
        where = {"node": platform.node(), "pid": os.getpid(), "device": self.host.device}
        return [{"clients": sorted(self.host.sites), **where, "cpus": 1.0, "gpus": 0.0, "restarts": 0}]

    def close(self) -> None:
        """Nothing to give back."""
