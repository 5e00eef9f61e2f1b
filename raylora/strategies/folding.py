"""Products added into the base: every round ends in the frozen weights, and the next one starts with a fresh pair."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from raylora.core import lowrank
from raylora.core import tree as trees
from raylora.core.reduce import Reduce, by_client, mean, movement, require_weighing, shares, weigh_products
from raylora.core.seeds import generator
from raylora.core.types import Broadcast, Client, ClientUpdate, State, Strategy, Task, Tree
from raylora.strategies.averaging import EVERYTHING

Rating = Callable[[State, Sequence[ClientUpdate]], tuple[Sequence[float], Mapping[str, object]]]
"""(state, updates by client id) to the weight w_k of each and what to remember of it in the state's values."""


def folding(
    name: str, rating: Rating, *, seed: int, head: str, weights: str, reduce: Reduce = mean, scores: tuple[str, ...] = (), **declared: Any
) -> Strategy:
    """W <- W + sum_k w_k p_k scaling_k B_k A_k, as stacked factors; heads by the mean with p_k.

    Down and layer: (sum of the cohort's ranks) (in + out) floats for the base, at most min(in, out) (in + out), and r (in + out) for the
    fresh pair; up: r (in + out).
    """
    require_weighing(reduce, name)
    uploads = trees.shared_names(head)

    def init(tree: Tree) -> State:
        shared = trees.freeze(trees.select(tree, uploads))
        kept = {"start": trees.select(shared, (trees.LORA,)), "head": trees.select(shared, trees.HEAD), "delta": {}}
        return State(trees=kept, values={"round": 0, "base_version": 0})

    def broadcast(state: State, client: Client) -> Broadcast:
        start = state.trees["start"]
        pair = lowrank.restart(start, generator(seed, "restart", state.round)) if state.round else start
        return Broadcast(
            adapter=trees.freeze({**lowrank.cut(pair, client.rank), **state.trees["head"]}),
            base_delta=state.trees["delta"],
            base_version=int(str(state.values["base_version"])),
            task=Task(round=state.round, phases=EVERYTHING, uploads=uploads, scores=scores),
        )

    def aggregate(state: State, updates: Sequence[ClientUpdate]) -> State:
        updates = by_client(updates)
        for update in updates:
            expected = {**lowrank.cut(state.trees["start"], lowrank.rank_of(update.adapter)), **state.trees["head"]}
            trees.require_same(expected, update.adapter, f"round {state.round + 1}, client {update.client_id}")
        units = [lowrank.pairs(lowrank.to_unit(u.adapter, u.scaling)) for u in updates]
        p = weigh_products(reduce, units, shares(updates, weights))
        w, memory = rating(state, updates)
        factors = [share * weight for share, weight in zip(p, w, strict=True)]
        delta = {m: lowrank.thin(lowrank.stack([pairs[m] for pairs in units], factors)) for m in units[0]}
        heads = [trees.select(u.adapter, trees.HEAD) for u in updates]
        moved = trees.add(state.trees["head"], movement(state.trees["head"], heads, p, mean, state.round))
        kept = {"start": state.trees["start"], "head": trees.freeze(moved), "delta": trees.freeze(lowrank.named(delta))}
        values = {**state.values, **memory, "round": state.round + 1, "base_version": int(str(state.values["base_version"])) + 1}
        return State(trees=kept, values=values)

    return Strategy(init=init, broadcast=broadcast, aggregate=aggregate, name=name, **{"steady": False, **declared})
