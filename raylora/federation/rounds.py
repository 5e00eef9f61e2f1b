"""The server's side of a round: broadcast, fold, train, review, aggregate; and the count of its bytes and of its virtual time."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from raylora.core import lowrank, payload
from raylora.core.clock import NEUTRAL, Conditions, close, exchange_s
from raylora.core.types import Broadcast, Client, ClientState, ClientUpdate, State, Strategy, Tree
from raylora.federation.answers import EvalRow, Outcome, Scored
from raylora.federation.stacking import Probe

Stack = Sequence[tuple[str, Broadcast]]
"""Clients that share a pass, in client-id order."""

Rows = Callable[[], list[EvalRow]]
"""Scores that are under way: called, it waits for them."""


class Executor(Protocol):
    """How clients are run: in this process, or in Ray actors. It never changes a number."""

    def train(self, stacks: Sequence[Stack]) -> Iterator[Outcome]:
        """Clients in other processes begin now, after whatever they were asked before; their outcomes come as they finish."""

    def arrange(self, stack: int) -> None:
        """So many clients share a pass from now on."""

    def probe(self, stack: int) -> Probe:
        """What a training step of so many clients in one pass costs where clients run."""

    def room(self) -> tuple[int, float]:
        """How many passes run at once, and the bytes that each may take."""

    def evaluate(self, requests: Sequence[Scored], split: str, *, full: bool) -> Rows:
        """Asked for now; nobody waits for it before the rows are wanted."""

    def predictions(self, request: Scored, client: str, patient: str) -> dict[str, np.ndarray]:
        """{"ED/pred", "ED/image", "ED/truth", ...: (x, y, z)} of one of the client's test patients."""

    def set_base(self, weights: Mapping[str, np.ndarray]) -> None:
        """The backbone is its original self but for these weights, by parameter name ({}: the original)."""

    def restore(self, states: Mapping[str, ClientState]) -> None:
        """What these clients keep, from now on."""

    def describe(self) -> list[dict[str, object]]:
        """One {clients, node, pid, device, cpus, gpus, restarts} a process: `actors` of the summary."""

    def close(self) -> None:
        """Give back what was taken of the machine."""


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
    virtual_s: float = 0.0  # since the start, on the simulated lines and devices
    under_way: State = field(default_factory=State)  # asynchronous rounds: answers that have not arrived yet (see `buffered`)


@dataclass(frozen=True, kw_only=True)
class ClientReport:
    client: str
    seconds: float
    bytes_up: int
    bytes_down: int
    metrics: Mapping[str, float]
    virtual_s: float = 0.0  # from being asked to having answered
    staleness: int = 0  # rounds since the model that it started from


@dataclass(frozen=True, kw_only=True)
class RoundReport:
    round: int
    clients: tuple[ClientReport, ...]  # those that trained; in asynchronous rounds those whose answers arrived
    bytes_down: int  # also to those that never answered
    dropped: tuple[str, ...] = ()  # asked, and never answered
    unused: tuple[str, ...] = ()  # answered when the server had gone on
    refused: Mapping[str, str] = field(default_factory=dict)  # client -> why its update is in no sum


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
    conditions: Conditions = NEUTRAL,
) -> tuple[Progress, RoundReport]:
    """One round over the cohort, from its broadcasts to its sum."""
    answers = begin_round(progress, broadcasts, cohort, executor, stack=stack, conditions=conditions)
    return end_round(progress, broadcasts, strategy, clients, cohort, answers, executor, conditions=conditions)


def begin_round(
    progress: Progress,
    broadcasts: Mapping[str, Broadcast],
    cohort: Sequence[str],
    executor: Executor,
    *,
    stack: int = 1,
    conditions: Conditions = NEUTRAL,
) -> Iterator[Outcome]:
    """Those of the cohort train who do not drop out and have nothing under way. Their outcomes, in the order in which they finish."""
    order = [client for client in sorted(cohort) if client not in conditions.dropped and client not in progress.under_way.values]
    return executor.train(stacked([(client, broadcasts[client]) for client in order], stack))


def stacked(order: Sequence[tuple[str, Broadcast]], stack: int) -> list[list[tuple[str, Broadcast]]]:
    """Cut into passes of at most `stack` neighbours, who all do the same: one that is asked for something else begins a new pass."""
    found: list[list[tuple[str, Broadcast]]] = []
    for client, broadcast in order:
        first = found[-1][0][1].task if found else None
        if first is not None and len(found[-1]) < stack and (first.phases, first.scores) == (broadcast.task.phases, broadcast.task.scores):
            found[-1].append((client, broadcast))
        else:
            found.append([(client, broadcast)])
    return found


def by_client(answers: Iterable[Outcome]) -> dict[str, Outcome]:
    """Outcomes in client-id order, whoever finished first: sums do not depend on it."""
    return {outcome.update.client_id: outcome for outcome in sorted(answers, key=lambda outcome: outcome.update.client_id)}


def end_round(
    progress: Progress,
    broadcasts: Mapping[str, Broadcast],
    strategy: Strategy,
    clients: Sequence[Client],
    cohort: Sequence[str],
    answers: Iterable[Outcome],
    executor: Executor,
    *,
    conditions: Conditions = NEUTRAL,
) -> tuple[Progress, RoundReport]:
    """What the server makes of a round's answers, once they are there.

    A client that drops out is sent the model and never trains. One whose answer comes when the server has gone on has trained, its private
    state has moved, and its update is lost.
    """
    known = {client.id: client for client in clients}
    order = sorted(cohort)
    outcomes = by_client(answers)
    down = {client: bytes_down(progress, client, broadcasts[client]) for client in order}
    up = {client: payload.bytes_of(outcome.update) for client, outcome in outcomes.items()}
    arrivals = {client: conditions.trip(client).seconds(down[client], up[client]) for client in outcomes}
    refused = {client: outcome.refused for client, outcome in outcomes.items() if outcome.refused is not None}
    turns = {client: conditions.trip(client).turn for client in outcomes}
    used, seconds = close({c: s for c, s in arrivals.items() if c not in refused}, len(order), conditions.waiting, turns)
    updates = [outcomes[client].update for client in used]
    if strategy.review is not None and updates:
        updates, more_down, more_up, failed = _review(progress, strategy, [known[client] for client in used], updates, executor)
        refused |= failed
        down = {client: value + more_down.get(client, 0) for client, value in down.items()}
        up = {client: value + more_up.get(client, 0) for client, value in up.items()}
        seconds += max((exchange_s(conditions.trip(c).line, more_down[c], more_up[c]) for c in more_up), default=0.0)
    outcomes, back = _uncounted(progress, outcomes, {update.client_id for update in updates})
    if back:
        executor.restore(back)
    after = after_round(
        progress, strategy, clients, updates, asked=order, outcomes=outcomes, seconds=seconds, up=sum(up.values()), down=sum(down.values())
    )
    reports = tuple(
        ClientReport(client=c, seconds=o.seconds, bytes_up=up[c], bytes_down=down[c], metrics=o.update.metrics, virtual_s=arrivals[c])
        for c, o in outcomes.items()
    )
    unused = tuple(client for client in outcomes if client not in used and client not in refused)
    dropped = tuple(client for client in order if client in conditions.dropped)
    return after, RoundReport(
        round=progress.round, clients=reports, bytes_down=sum(down.values()), dropped=dropped, unused=unused, refused=refused
    )


def after_round(
    progress: Progress,
    strategy: Strategy,
    clients: Sequence[Client],
    updates: Sequence[ClientUpdate],
    *,
    asked: Sequence[str],
    outcomes: Mapping[str, Outcome],
    seconds: float,
    up: int,
    down: int,
) -> Progress:
    """The run once these updates are in: the server, what clients keep, the base versions that they have, bytes and time.

    clients: who is there or still to come; folds that all of them have are forgotten."""
    versions = {**progress.versions, **dict.fromkeys(asked, progress.base_version)}
    oldest = min((versions.get(client.id, 0) for client in clients), default=progress.base_version)
    return replace(
        progress,
        round=progress.round + 1,
        server=strategy.aggregate(progress.server, updates),
        states={**progress.states, **{client: outcome.state for client, outcome in outcomes.items()}},
        versions=versions,
        deltas={version: delta for version, delta in progress.deltas.items() if version > oldest},
        bytes_up=progress.bytes_up + up,
        bytes_down=progress.bytes_down + down,
        virtual_s=progress.virtual_s + seconds,
    )


def _uncounted(
    progress: Progress, outcomes: Mapping[str, Outcome], counted: Collection[str]
) -> tuple[dict[str, Outcome], dict[str, ClientState]]:
    """The outcomes, and what clients whose answer was not used keep otherwise than they said: SCAFFOLD's c_k as it was before the round, or c,
    which has not seen its change, would not be the mean of the c_k any more."""
    back = {}
    for client, outcome in outcomes.items():
        if client not in counted and "c_k" in outcome.state.trees:
            before = progress.states.get(client)
            old = {} if before is None else {key: tree for key, tree in before.trees.items() if key == "c_k"}
            now = {key: tree for key, tree in outcome.state.trees.items() if key != "c_k"}
            back[client] = replace(outcome.state, trees={**now, **old})
    return {client: replace(outcome, state=back.get(client, outcome.state)) for client, outcome in outcomes.items()}, back


def _review(
    progress: Progress, strategy: Strategy, clients: Sequence[Client], updates: Sequence[ClientUpdate], executor: Executor
) -> tuple[list[ClientUpdate], dict[str, int], dict[str, int], dict[str, str]]:
    """The second exchange: what each client says of what it was shown goes into its update's metrics. (the updates of those who said it as
    asked, bytes down, bytes up, why the others are left out)."""
    assert strategy.review is not None
    asked = {client.id: strategy.review(progress.server, updates, client) for client in clients}
    stacks = [[(client, broadcast)] for client, broadcast in sorted(asked.items()) if broadcast is not None]
    down = {client: payload.bytes_of(broadcast) for client, broadcast in asked.items() if broadcast is not None}
    answers = [(outcome.update, outcome.refused) for outcome in executor.train(stacks)]
    replies = {reply.client_id: reply for reply, why in answers if why is None}
    refused = {reply.client_id: f"of what it was shown: {why}" for reply, why in answers if why is not None}
    up = {client: payload.bytes_of(reply) for client, reply in replies.items()}
    merged = [
        replace(update, metrics={**update.metrics, **replies[update.client_id].metrics}) if update.client_id in replies else update
        for update in updates
        if update.client_id in replies or asked[update.client_id] is None
    ]
    return merged, down, up, refused


def bytes_down(progress: Progress, client: str, broadcast: Broadcast) -> int:
    """A broadcast's bytes with every fold that this client has not had yet."""
    have = progress.versions.get(client, 0)
    missing = [delta for version, delta in sorted(progress.deltas.items()) if version > have]
    stacked: dict[str, np.ndarray] = {}
    for module in sorted({m for delta in missing for m in lowrank.pairs(delta)}):
        several = [pairs[module] for delta in missing if module in (pairs := lowrank.pairs(delta))]
        stacked |= lowrank.named({module: lowrank.thin(lowrank.stack(several, [1.0] * len(several)))})
    return payload.bytes_of(replace(broadcast, base_delta=stacked))
