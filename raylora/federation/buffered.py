"""Asynchronous rounds in the order of virtual time: the server goes on whenever a buffer of answers is full (FedBuff, Nguyen et al.,
AISTATS 2022, arXiv 2106.06639).

Whoever is there and not under way starts from the newest model. An answer that started tau rounds ago counts as
"now + (1 + tau)^-a (sent - received)", name by name, so that any strategy that moves its server by what clients moved can use it
unchanged (`dials.require_asynchronous` refuses the others).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

from raylora.core import payload
from raylora.core import tree as trees
from raylora.core.clock import NEUTRAL, Conditions, freshness
from raylora.core.types import Broadcast, Client, ClientUpdate, State, Strategy, Tree
from raylora.federation.answers import Outcome
from raylora.federation.rounds import ClientReport, Executor, Progress, RoundReport, after_round, by_client, bytes_down


@dataclass(frozen=True, kw_only=True)
class Flight:
    """An answer under way, with what it started from."""

    update: ClientUpdate
    received: Tree  # the names of the update's adapter, as they were sent to the client
    since: int  # the round in which it started
    arrives_s: float  # virtual time
    virtual_s: float  # it took
    seconds: float  # of computing it, really
    bytes_up: int
    bytes_down: int


def end_buffered(
    progress: Progress,
    broadcasts: Mapping[str, Broadcast],
    strategy: Strategy,
    clients: Sequence[Client],
    cohort: Sequence[str],
    answers: Iterable[Outcome],
    executor: Executor,
    *,
    size: int,
    exponent: float,
    conditions: Conditions = NEUTRAL,
) -> tuple[Progress, RoundReport]:
    """From one full buffer to the next, as `rounds.end_round`. `cohort` is everybody who is there. Where fewer than `size` answers are
    under way, the last of them ends the round; a client that drops out is asked again in the next one.

    What a client computes is computed when it starts; its private state has moved then. Bytes are counted when they are sent down and when
    they have arrived.
    """
    flights = unpacked(progress.under_way)
    idle = [client for client in sorted(cohort) if client not in flights]
    outcomes = by_client(answers)
    down = {client: bytes_down(progress, client, broadcasts[client]) for client in idle}
    refused = {client: outcome.refused for client, outcome in outcomes.items() if outcome.refused is not None}
    for client, outcome in outcomes.items():
        if client in refused:
            continue
        up = payload.bytes_of(outcome.update)
        took = conditions.trip(client).seconds(down[client], up)
        flights[client] = Flight(
            update=outcome.update,
            received={name: broadcasts[client].adapter[name] for name in outcome.update.adapter},
            since=progress.round,
            arrives_s=progress.virtual_s + took,
            virtual_s=took,
            seconds=outcome.seconds,
            bytes_up=up,
            bytes_down=down[client],
        )
    landing = sorted(flights, key=lambda client: (flights[client].arrives_s, flights[client].since, client))[:size]  # who waits longest
    landed = {client: flights.pop(client) for client in sorted(landing)}
    now_s = max([progress.virtual_s, *(flight.arrives_s for flight in landed.values())])
    updates = [rebased(flight, broadcasts[client].adapter, progress.round, exponent) for client, flight in landed.items()]
    up_now, down_now = sum(flight.bytes_up for flight in landed.values()), sum(down.values())
    after = after_round(
        progress, strategy, clients, updates, asked=idle, outcomes=outcomes, seconds=now_s - progress.virtual_s, up=up_now, down=down_now
    )
    reports = tuple(
        ClientReport(
            client=client,
            seconds=flight.seconds,
            bytes_up=flight.bytes_up,
            bytes_down=flight.bytes_down,
            metrics=flight.update.metrics,
            virtual_s=flight.virtual_s,
            staleness=progress.round - flight.since,
        )
        for client, flight in landed.items()
    )
    dropped = tuple(client for client in idle if client in conditions.dropped)
    report = RoundReport(round=progress.round, clients=reports, bytes_down=down_now, dropped=dropped, refused=refused)
    return replace(after, under_way=packed(flights), virtual_s=now_s), report


def rebased(flight: Flight, now: Tree, round: int, exponent: float) -> ClientUpdate:
    """The answer as if it had started from the model of this round, its movement weighed by how fresh it is. Raises RunError if the model's
    names or shapes have changed since."""
    staleness = round - flight.since
    if not staleness:
        return flight.update
    here = {name: now[name] for name in flight.received if name in now}
    trees.require_same(
        here, flight.update.adapter, f"round {round + 1}, client {flight.update.client_id}, an answer of round {flight.since + 1}"
    )
    step = trees.subtract(flight.update.adapter, flight.received)
    return replace(flight.update, adapter=trees.freeze(trees.add(here, step, freshness(staleness, exponent))))


NUMBERS = ("since", "arrives_s", "virtual_s", "seconds", "bytes_up", "bytes_down")


def packed(flights: Mapping[str, Flight]) -> State:
    """The answers under way as named trees and JSON, for a checkpoint."""
    kept: dict[str, Tree] = {}
    values: dict[str, object] = {}
    for client, flight in flights.items():
        update = asdict(replace(flight.update, adapter={}, extra={}))
        kept |= {f"sent/{client}": flight.update.adapter, f"received/{client}": flight.received}
        values[client] = {"update": update, **{name: getattr(flight, name) for name in NUMBERS}}
    return State(trees=kept, values=values)


def unpacked(state: State) -> dict[str, Flight]:
    """The opposite of `packed`."""
    found = {}
    for client, value in state.values.items():
        about = cast(dict[str, Any], value)
        update = ClientUpdate(**{**about["update"], "adapter": state.trees[f"sent/{client}"], "extra": {}})
        found[client] = Flight(update=update, received=state.trees[f"received/{client}"], **{name: about[name] for name in NUMBERS})
    return found
