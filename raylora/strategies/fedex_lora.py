"""FedEx-LoRA, the residual in the base (Singhal et al., ACL 2025, arXiv 2410.09432)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from raylora.core import lowrank
from raylora.core import tree as trees
from raylora.core.reduce import by_client, shares
from raylora.core.types import Broadcast, Client, ClientUpdate, State, Strategy, Task, Tree
from raylora.strategies import options
from raylora.strategies.averaging import EVERYTHING, averaging, in_units


def fedex_lora(*, residual_rank: int | None = None, weights: str = "size", head: str = "shared") -> Strategy:
    """A = sum_k p_k A_k, B = sum_k p_k B_k, and W_0 += sum_k p_k B_k A_k - B A at every client (unit pairs). The residual is
    sum_k p_k (B_k - B)(A_k - A), sent as stacked factors. The published code has uniform weights.

    residual_rank: its best approximation of that rank (None: exact). Down and layer: r (in + out) and K r (in + out) floats, the second
    at most min(in, out) (in + out); up: r (in + out).
    """
    options.check(weights=weights, head=head)
    options.whole("residual_rank", residual_rank, 1)
    uploads = trees.shared_names(head)
    inner = averaging(
        "fedex_lora",
        lambda round: Task(round=round, phases=EVERYTHING, uploads=uploads),
        uploads,
        weights=weights,
        product="exact" if residual_rank is None else "inexact",
    )

    def init(tree: Tree) -> State:
        state = inner.init(tree)
        return replace(state, trees={**state.trees, "delta": {}}, values={**state.values, "base_version": 0})

    def broadcast(state: State, client: Client) -> Broadcast:
        version = int(str(state.values["base_version"]))
        return replace(inner.broadcast(state, client), base_delta=state.trees["delta"], base_version=version)

    def aggregate(state: State, updates: Sequence[ClientUpdate]) -> State:
        updates = by_client(updates)
        after = inner.aggregate(state, updates)
        centre, p = lowrank.pairs(after.trees["adapter"]), shares(updates, weights)
        apart = [lowrank.pairs(trees.subtract(u.adapter, after.trees["adapter"])) for u in updates]
        stacked = {module: lowrank.stack([pairs[module] for pairs in apart], p) for module in centre}
        delta = {m: lowrank.truncate(pair, residual_rank) if residual_rank else lowrank.thin(pair) for m, pair in stacked.items()}
        version = int(str(state.values["base_version"])) + 1
        kept = {**after.trees, "delta": trees.freeze(lowrank.named(delta))}
        return replace(after, trees=kept, values={**after.values, "base_version": version})

    return in_units(replace(inner, init=init, broadcast=broadcast, aggregate=aggregate))
