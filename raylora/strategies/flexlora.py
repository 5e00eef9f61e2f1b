"""FlexLoRA, redistribution by SVD (Bai et al., NeurIPS 2024, arXiv 2402.11505)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from raylora.core import lowrank
from raylora.core import tree as trees
from raylora.core.reduce import Reduce, by_client, mean, movement, require_weighing, shares, weigh_products
from raylora.core.types import Broadcast, Client, ClientUpdate, State, Strategy, Task, Tree
from raylora.strategies import options
from raylora.strategies.averaging import EVERYTHING


def flexlora(*, weights: str = "size", head: str = "shared", reduce: Reduce = mean) -> Strategy:
    """dW = sum_k p_k s_k B_k A_k; U S V^T = SVD(dW); client k gets B = U_{:r_k} S_{:r_k} / s_k, A = V^T_{:r_k}: the best
    approximation of its rank. Round 0 sends the seeded pair. reduce: a `Weighing`, on the products. Traffic as FedIT at each rank.
    """
    options.check(weights=weights, head=head)
    return redistribution("flexlora", weights=weights, head=head, reduce=reduce)


def redistribution(name: str, *, weights: str, head: str, reduce: Reduce, **declared: Any) -> Strategy:
    """Stack the clients' global pairs, keep the best pair of the largest rank, send each client the first rows and columns of it."""
    require_weighing(reduce, name)
    uploads = trees.shared_names(head)

    def init(tree: Tree) -> State:
        shared = trees.freeze(trees.select(tree, uploads))
        start = trees.select(shared, (trees.LORA,))
        return State(trees={"adapter": start, "start": start, "head": trees.select(shared, trees.HEAD)}, values={"round": 0})

    def broadcast(state: State, client: Client) -> Broadcast:
        pair = lowrank.from_unit(lowrank.cut(state.trees["adapter"], client.rank), client.scaling)
        sent = trees.freeze({**pair, **state.trees["head"]})
        return Broadcast(adapter=sent, task=Task(round=state.round, phases=EVERYTHING, uploads=uploads))

    def aggregate(state: State, updates: Sequence[ClientUpdate]) -> State:
        updates = by_client(updates)
        start, head_tree = lowrank.pairs(state.trees["start"]), state.trees["head"]
        for update in updates:
            expected = {**lowrank.cut(state.trees["start"], lowrank.rank_of(update.adapter)), **head_tree}
            trees.require_same(expected, update.adapter, f"round {state.round + 1}, client {update.client_id}")
        units = [lowrank.pairs(lowrank.to_unit(u.adapter, u.scaling)) for u in updates]
        p = weigh_products(reduce, units, shares(updates, weights))
        best = {m: filled(lowrank.truncate(lowrank.stack([unit[m] for unit in units], p), a.shape[0]), a) for m, (a, _) in start.items()}
        heads = trees.add(head_tree, movement(head_tree, [trees.select(u.adapter, trees.HEAD) for u in updates], p, mean, state.round))
        kept = {"adapter": trees.freeze(lowrank.named(best)), "start": state.trees["start"], "head": trees.freeze(heads)}
        return State(trees=kept, values={**state.values, "round": state.round + 1})

    return Strategy(init=init, broadcast=broadcast, aggregate=aggregate, name=name, **{"product": "best", "steady": False, **declared})


def filled(pair: lowrank.Pair, start: np.ndarray) -> lowrank.Pair:
    """The same product at the rank of `start` (r, in): rows that are missing because only small clients came are taken from it, with
    zero columns of B, so that no direction is dead."""
    a, b = lowrank.pad(pair, start.shape[0])
    a[pair[0].shape[0] :] = start[pair[0].shape[0] :]
    return a, b
