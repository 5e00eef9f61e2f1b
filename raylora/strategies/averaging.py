"""The mean of what the clients upload. FedIT is this, and many methods are FedIT with another task or another server step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from raylora.core import lowrank
from raylora.core import tree as trees
from raylora.core.reduce import Reduce, Seeded, by_client, mean, movement, shares
from raylora.core.types import Broadcast, Client, ClientUpdate, Phase, State, Strategy, Task, Tree

EVERYTHING = (Phase(trains=("*",)),)

Server = Callable[[State, Tree], Mapping[str, Tree]]
"""(state, mean movement of the clients in float64) to the server's next trees."""


def follow(state: State, step: Tree) -> Mapping[str, Tree]:
    """The server goes where the clients went."""
    return {"adapter": trees.add(state.trees["adapter"], step)}


def averaging(
    name: str,
    task: Callable[[int], Task],
    shared: tuple[str, ...],
    *,
    weights: str = "size",
    reduce: Reduce = mean,
    server: Server = follow,
    **declared: Any,
) -> Strategy:
    """A strategy that keeps the names of `shared`, sends all of them and moves them by the reduction of the clients' movements.

    task: round to what is asked of the clients; its uploads are among `shared`. declared: further fields of Strategy.
    """

    own_rank = declared.get("adapters", {"": None}).get("", 0) is None  # else the strategy gives the rank, or there is no global pair

    def init(tree: Tree) -> State:
        return State(trees={"adapter": trees.freeze(trees.select(tree, shared))}, values={"round": 0})

    def broadcast(state: State, client: Client) -> Broadcast:
        if own_rank:
            lowrank.require_rank(state.trees["adapter"], client.id, client.rank, name)
        return Broadcast(adapter=state.trees["adapter"], task=task(state.round))

    def aggregate(state: State, updates: Sequence[ClientUpdate]) -> State:
        received = trees.select(state.trees["adapter"], task(state.round).uploads)
        if not updates and isinstance(reduce, Seeded):  # noise is released all the same, or one could see that nobody came
            updates = [ClientUpdate(client_id="", num_examples=1, adapter=received)]
        updates = by_client(updates)
        for update in updates:
            trees.require_same(received, update.adapter, f"round {state.round + 1}, client {update.client_id}")
        step = movement(received, [u.adapter for u in updates], shares(updates, weights), reduce, state.round)
        moved = {**state.trees, **server(state, step)}
        return State(trees={key: trees.freeze(tree) for key, tree in moved.items()}, values={**state.values, "round": state.round + 1})

    return Strategy(init=init, broadcast=broadcast, aggregate=aggregate, name=name, mixed_ranks=not own_rank, **declared)


def in_units(strategy: Strategy) -> Strategy:
    """The same strategy on unit pairs: a client receives B / scaling and what it sends counts as scaling * B, so that products add up
    also where the clients' scalings differ."""

    def broadcast(state: State, client: Client) -> Broadcast:
        sent = strategy.broadcast(state, client)
        return replace(sent, adapter=trees.freeze(lowrank.from_unit(sent.adapter, client.scaling)))

    def aggregate(state: State, updates: Sequence[ClientUpdate]) -> State:
        return strategy.aggregate(state, [replace(u, adapter=lowrank.to_unit(u.adapter, u.scaling), scaling=1.0) for u in updates])

    return replace(strategy, broadcast=broadcast, aggregate=aggregate)
