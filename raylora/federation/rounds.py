"""The server's side of a round: broadcast, fold, train, review, aggregate; and the count of every byte that crosses."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from raylora.core import lowrank, payload
from raylora.core.errors import RunError
from raylora.core.types import Broadcast, Client, ClientState, ClientUpdate, State, Strategy, Tree
from raylora.federation.host import EvalRow, Outcome, Scored

Stack = Sequence[tuple[str, Broadcast]]
"""Clients that share a pass, in client-id order."""


class Executor(Protocol):
    """How clients are run: in this process, or in Ray actors. It never changes a number."""

    def train(self, stacks: Sequence[Stack]) -> Iterator[Outcome]: ...

    def evaluate(self, requests: Sequence[Scored], split: str, *, full: bool) -> list[EvalRow]: ...

    def predictions(self, request: Scored, client: str, patient: str) -> dict[str, np.ndarray]: ...

    def set_base(self, weights: Mapping[str, np.ndarray]) -> None: ...

    def restore(self, states: Mapping[str, ClientState]) -> None: ...

    def describe(self) -> list[dict[str, object]]: ...

    def close(self) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Everything that a run is, between two rounds."""

    round: int  # the next one
    server: State
    states: Mapping[str, ClientState] = field(default_factory=dict)  # what clients keep: never traffic
    base: Mapping[str, np.ndarray] = field(default_factory=dict)  # weights that were folded into, by parameter name
    base_version: int = 0
    folded: Tree = field(default_factory=dict)  # the sum of all folds as pairs of unit scale
    deltas: Mapping[int, Tree] = field(default_factory=dict)  # version -> its fold, for clients that have missed it
    versions: Mapping[str, int] = field(default_factory=dict)  # client -> the base version it has
    bytes_up: int = 0
    bytes_down: int = 0


@dataclass(frozen=True, kw_only=True)
class ClientReport:
    client: str
    seconds: float
    bytes_up: int
    bytes_down: int
    metrics: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class RoundReport:
    round: int
    clients: tuple[ClientReport, ...]


def receive(
    progress: Progress, strategy: Strategy, clients: Sequence[Client], original: Mapping[str, np.ndarray]
) -> tuple[Progress, dict[str, Broadcast]]:
    """What every client would be sent now, with a new base delta folded into the server's base.

    `original` holds the backbone's own weights; a fold is computed once, here, in float64, so that every client has the same bits.
    """
    broadcasts = {client.id: strategy.broadcast(progress.server, client) for client in clients}
    first = next(iter(broadcasts.values()))
    if first.base_version > progress.base_version:
        delta = first.base_delta
        base = {**progress.base}
        for module, (a, b) in lowrank.pairs(delta).items():
            name = f"{module}.weight"
            weight = base.get(name, original[name])
            product = b.astype(np.float64) @ a.astype(np.float64)
            base[name] = (weight + product.reshape(weight.shape)).astype(np.float32)
        progress = replace(
            progress,
            base=base,
            base_version=first.base_version,
            folded=_accumulate(progress.folded, delta),
            deltas={**progress.deltas, first.base_version: delta},
        )
    return progress, broadcasts


def _accumulate(folded: Tree, delta: Tree) -> Tree:
    """The sum of two sets of pairs of unit scale, each at its numerical rank."""
    old, new = lowrank.pairs(folded), lowrank.pairs(delta)
    return lowrank.named(
        {m: lowrank.refactor([p[m] for p in (old, new) if m in p], [1.0] * ((m in old) + (m in new))) for m in sorted({*old, *new})}
    )


def run_round(
    progress: Progress,
    broadcasts: Mapping[str, Broadcast],
    strategy: Strategy,
    clients: Sequence[Client],
    cohort: Sequence[str],
    executor: Executor,
    *,
    stack: int = 1,
    on_client: Callable[[Outcome], None] = lambda outcome: None,
) -> tuple[Progress, RoundReport]:
    """One round over the cohort. Results are taken as they finish and sorted by client id before anything is summed."""
    known = {client.id: client for client in clients}
    order = sorted(cohort)
    stacks = [[(client, broadcasts[client]) for client in order[i : i + stack]] for i in range(0, len(order), stack)]
    outcomes: dict[str, Outcome] = {}
    for outcome in executor.train(stacks):
        check_update(outcome.update, broadcasts[outcome.update.client_id])
        outcomes[outcome.update.client_id] = outcome
        on_client(outcome)
    updates = [outcomes[client].update for client in order]
    down = {client: _bytes_down(progress, client, broadcasts[client]) for client in order}
    up = {client: payload.bytes_of(outcomes[client].update) for client in order}
    if strategy.review is not None:
        updates, more_down, more_up = _review(progress, strategy, [known[client] for client in order], updates, executor)
        down = {client: value + more_down.get(client, 0) for client, value in down.items()}
        up = {client: value + more_up.get(client, 0) for client, value in up.items()}
    server = strategy.aggregate(progress.server, updates)
    versions = {**progress.versions, **{client: progress.base_version for client in order}}
    oldest = min(versions.get(client.id, 0) for client in clients)
    after = replace(
        progress,
        round=progress.round + 1,
        server=server,
        states={**progress.states, **{client: outcomes[client].state for client in order}},
        versions=versions,
        deltas={version: delta for version, delta in progress.deltas.items() if version > oldest},
        bytes_up=progress.bytes_up + sum(up.values()),
        bytes_down=progress.bytes_down + sum(down.values()),
    )
    reports = tuple(
        ClientReport(client=c, seconds=outcomes[c].seconds, bytes_up=up[c], bytes_down=down[c], metrics=outcomes[c].update.metrics)
        for c in order
    )
    return after, RoundReport(round=progress.round, clients=reports)


def _review(
    progress: Progress, strategy: Strategy, clients: Sequence[Client], updates: Sequence[ClientUpdate], executor: Executor
) -> tuple[list[ClientUpdate], dict[str, int], dict[str, int]]:
    """The second exchange: what each client says of what it was shown goes into its update's metrics."""
    assert strategy.review is not None
    asked = {client.id: strategy.review(progress.server, updates, client) for client in clients}
    stacks = [[(client, broadcast)] for client, broadcast in sorted(asked.items()) if broadcast is not None]
    down = {client: payload.bytes_of(broadcast) for client, broadcast in asked.items() if broadcast is not None}
    replies = {outcome.update.client_id: outcome.update for outcome in executor.train(stacks)}
    up = {client: payload.bytes_of(reply) for client, reply in replies.items()}
    merged = [
        replace(update, metrics={**update.metrics, **replies[update.client_id].metrics}) if update.client_id in replies else update
        for update in updates
    ]
    return merged, down, up


def _bytes_down(progress: Progress, client: str, broadcast: Broadcast) -> int:
    """A broadcast's bytes with every fold that this client has not had yet."""
    have = progress.versions.get(client, 0)
    missing = [delta for version, delta in sorted(progress.deltas.items()) if version > have]
    stacked: dict[str, np.ndarray] = {}
    for module in sorted({m for delta in missing for m in lowrank.pairs(delta)}):
        several = [pairs[module] for delta in missing if module in (pairs := lowrank.pairs(delta))]
        stacked |= lowrank.named({module: lowrank.thin(lowrank.stack(several, [1.0] * len(several)))})
    return payload.bytes_of(replace(broadcast, base_delta=stacked))


def check_update(update: ClientUpdate, broadcast: Broadcast) -> None:
    """An update is data from outside: refuse what is not finite float32 before it is summed. Raises RunError naming client and name."""
    where = f"round {broadcast.task.round}, client {update.client_id}"
    for name, value in update.adapter.items():
        if value.dtype != np.float32:
            raise RunError(f"{where}: {name} is {value.dtype}, expected float32")
        if not np.isfinite(value).all():
            raise RunError(f"{where}: {name} has values that are not finite")
        sent = broadcast.adapter.get(name)
        if sent is not None and sent.shape != value.shape:
            raise RunError(f"{where}: {name} has shape {value.shape}, expected {sent.shape}")
    for name, number in update.metrics.items():
        if not np.isfinite(number):
            raise RunError(f"{where}: the metric {name} is {number}")
