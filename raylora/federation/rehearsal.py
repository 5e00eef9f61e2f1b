"""A round without data: clients answer with what they were sent, moved a little, so that every message has its true names and shapes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from raylora.core.seeds import generator
from raylora.core.tree import match
from raylora.core.types import Broadcast, Client, ClientState
from raylora.federation.answers import Outcome, Scored
from raylora.federation.client import Shard, Site, parted
from raylora.federation.protocol import Protocol, compose
from raylora.federation.rounds import Rows, Stack
from raylora.federation.stacking import Probe
from raylora.models.outline import Outline

SCORE, LOSS = 0.5, 1.0  # what a client claims where it would measure
MOVE = 1e-3  # standard deviation of what training would change: products get their full rank


class NoData:
    """Nothing to train on."""

    def __len__(self) -> int:
        return 0

    def batch(self, indices: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        raise ValueError("a rehearsal has no data")


class Rehearsal:
    """An `Executor` whose clients neither train nor score. Only the sizes of what crosses mean anything."""

    def __init__(self, outline: Outline, protocol: Protocol, clients: Sequence[Client]) -> None:
        self.outline, self.protocol = outline, protocol
        self.sites = {c.id: Site(id=c.id, rank=c.rank, shard=Shard(training=NoData(), patients=c.num_examples)) for c in clients}
        self.states: dict[str, ClientState] = {}

    def train(self, stacks: Sequence[Stack]) -> Iterator[Outcome]:
        for stack in stacks:
            for client, broadcast in stack:
                yield self._answer(self.sites[client], broadcast)

    def _answer(self, site: Site, broadcast: Broadcast) -> Outcome:
        state, task = self.states.get(site.id), broadcast.task
        received = compose(self.outline, self.protocol, site.id, site.rank, state, broadcast.adapter)
        moved: dict[str, np.ndarray] = dict(received)
        draw = generator(0, "rehearsal", task.round, site.id)
        for phase in task.phases:
            for name in sorted(match(received, phase.trains)):
                if name.endswith((".lora_A", ".lora_B")):
                    moved[name] = received[name] + MOVE * draw.standard_normal(received[name].shape, np.float32)
        metrics = {**{f"score_{name}": SCORE for name in task.scores}, **({"loss": LOSS} if task.phases else {})}
        kept = state.trees if state is not None else {}
        controls = {**broadcast.extra, **({"c_k": kept["c_k"]} if "c_k" in kept else {})}
        update, after = parted(self.protocol, site, state, broadcast, received, moved, metrics, controls, 1)
        if task.phases:
            self.states[site.id] = after
        return Outcome(update=update, state=after, seconds=0.0)

    def arrange(self, stack: int) -> None:
        """Nobody trains."""

    def probe(self, stack: int) -> Probe:
        return Probe(clients=stack, seconds=0.0, bytes=0)

    def room(self) -> tuple[int, float]:
        return 1, 0.0

    def evaluate(self, requests: Sequence[Scored], split: str, *, full: bool) -> Rows:
        return list

    def predictions(self, request: Scored, client: str, patient: str) -> dict[str, np.ndarray]:
        return {}

    def set_base(self, weights: Mapping[str, np.ndarray]) -> None:
        """Nothing is computed with it."""

    def restore(self, states: Mapping[str, ClientState]) -> None:
        self.states |= states

    def describe(self) -> list[dict[str, object]]:
        return []

    def close(self) -> None:
        """Nothing is held."""
