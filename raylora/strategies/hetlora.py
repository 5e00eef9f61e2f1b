"""HetLoRA, mixed ranks by truncation and padding (Cho et al., EMNLP 2024, arXiv 2401.06432)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np

from raylora.core import lowrank
from raylora.core import tree as trees
from raylora.core.reduce import by_client, mean, movement, normalised, shares
from raylora.core.types import Broadcast, Client, ClientUpdate, Phase, State, Strategy, Task, Tree
from raylora.strategies import options


def hetlora(*, gamma: float = 1.0, lam: float = 0.0, rank_min: int = 1, weights: str = "size", head: str = "shared") -> Strategy:
    """Client k gets the first r_k rows of A and columns of B; what comes back is padded with zeros to the largest rank and averaged with
    sparsity weights w_k = ||s_k B_k A_k||_F / sum_j ||s_j B_j A_j||_F, layer by layer; `weights` is for the head alone. The server keeps
    s B: s = alpha / r differs with the rank, and cutting or padding is not to change the product of the rows that stay.
    gamma < 1: rank self-pruning. The local loss gets lam ||B[:, g:]|| ||A[g:, :]|| with g = max(rank_min, ceil(gamma r_k)), and a client
    whose tail norm fell, as the server sees it, goes on with rank g. Traffic as FedIT at each rank.
    """
    options.check(weights=weights, head=head)
    options.number("gamma", gamma, 0.0, 1.0, open_low=True)
    options.number("lam", lam, 0.0)
    options.whole("rank_min", rank_min, 1)
    uploads = trees.shared_names(head)
    phases = (Phase(trains=("*",), terms={"het_prune": lam, "het_gamma": gamma, "het_least": rank_min} if gamma < 1 else {}),)

    def init(tree: Tree) -> State:
        return State(trees={"adapter": trees.freeze(trees.select(tree, uploads))}, values={"round": 0, "ranks": {}})

    def broadcast(state: State, client: Client) -> Broadcast:
        rank = ranks(state).get(client.id, client.rank)
        scaling = client.scaling * client.rank / rank  # a pruned client's is that of its new rank
        adapter = lowrank.from_unit(lowrank.cut(state.trees["adapter"], rank), scaling)
        return Broadcast(adapter=trees.freeze(adapter), task=Task(round=state.round, phases=phases, uploads=uploads))

    def aggregate(state: State, updates: Sequence[ClientUpdate]) -> State:
        updates = by_client(updates)
        server, known, sent = state.trees["adapter"], dict(ranks(state)), []
        for update in updates:
            rank = known[update.client_id] = lowrank.rank_of(update.adapter)
            received = trees.freeze(lowrank.from_unit(lowrank.cut(server, rank), update.scaling))
            trees.require_same(received, update.adapter, f"round {state.round + 1}, client {update.client_id}")
            cut = max(min(rank_min, rank), math.ceil(gamma * rank - 1e-9))
            if gamma < 1 and tail(update.adapter, cut) < tail(received, cut):
                rank = known[update.client_id] = cut
            sent.append(lowrank.cut(lowrank.to_unit(update.adapter, update.scaling), rank))
        heads = [trees.select(tree, trees.HEAD) for tree in sent]
        moved = trees.add(server, movement(trees.select(server, trees.HEAD), heads, shares(updates, weights), mean, state.round))
        units, most = [lowrank.pairs(tree) for tree in sent], max(known.values())
        mixed = {m: sparsity_mean(pair, [unit[m] for unit in units], most) for m, pair in lowrank.pairs(server).items()}
        values = {**state.values, "round": state.round + 1, "ranks": known}
        return State(trees={"adapter": trees.freeze({**moved, **lowrank.named(mixed)})}, values=values)

    why = {"zero weight": "clients are weighed by their product's norm, not by size"}
    idle = {} if gamma < 1 else dict.fromkeys(("lam", "rank_min"), "no rank is pruned (strategy.gamma below 1)")
    return Strategy(init=init, broadcast=broadcast, aggregate=aggregate, name="hetlora", product="inexact", exempt=why, idle=idle)


def ranks(state: State) -> Mapping[str, int]:
    """{client: its rank, after pruning}, of those that have answered."""
    return cast(Mapping[str, int], state.values["ranks"])


def tail(tree: Tree, cut: int) -> float:
    """sum over the layers of ||B[:, cut:]|| ||A[cut:, :]||."""
    return float(sum(np.linalg.norm(b[:, cut:]) * np.linalg.norm(a[cut:]) for a, b in lowrank.pairs(tree).values()))


def sparsity_mean(server: lowrank.Pair, pairs: Sequence[lowrank.Pair], most: int) -> lowrank.Pair:
    """The padded mean of one layer's unit pairs. Rows that no client of the round holds stay; beyond the largest rank that any still has B is 0."""
    held, norms = max(a.shape[0] for a, _ in pairs), [lowrank.norm(pair) for pair in pairs]
    w = normalised(norms if sum(norms) > 0 else [1.0] * len(norms))
    a, b = (sum(x * lowrank.pad(pair, len(server[0]))[side] for x, pair in zip(w, pairs, strict=True)) for side in (0, 1))
    b = np.concatenate([b[:, :held], server[1][:, held:most], np.zeros_like(server[1][:, most:])], axis=1)
    return np.concatenate([a[:held], server[0][held:]]), b
