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
    """A = sum_k p_k A_k, B = sum_k p_k B_k, and W_0 += sum_k p_k B_k A_k - B A at every client (unit pairs). Since sum_k p_k (B_k - B) = 0,
    the residual is sum_{k < K} p_k (B_k - B)(A_k - A_K), sent as stacked factors. The published code has uniform weights.

    residual_rank: its best approximation of that rank (None: exact). Down and layer: r (in + out) and (K - 1) r (in + out) floats, the
    second at most min(in, out) (in + out); up: r (in + out).
    """
    options.check(weights=weights, head=head)
    options.rank("residual_rank", residual_rank)
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
        p = shares(updates, weights)
        delta = residual([u for u, share in zip(updates, p, strict=True) if share], [x for x in p if x], after.trees["adapter"])
        if residual_rank:
            delta = {module: lowrank.truncate(pair, residual_rank) for module, pair in delta.items()}
        version = int(str(state.values["base_version"])) + 1
        kept = {**after.trees, "delta": trees.freeze(lowrank.named(delta))}
        return replace(after, trees=kept, values={**after.values, "base_version": version})

    return in_units(replace(inner, init=init, broadcast=broadcast, aggregate=aggregate))


def residual(updates: Sequence[ClientUpdate], p: Sequence[float], mean: Tree) -> dict[str, lowrank.Pair]:
    """{module: sum_k p_k B_k A_k - B A}, thin; nothing if there is one client."""
    pairs, centre = [lowrank.pairs(update.adapter) for update in updates], lowrank.pairs(mean)
    last = {module: lowrank.double(pair)[0] for module, pair in pairs[-1].items()}
    apart = {m: [(pair[m][0] - last[m], pair[m][1] - lowrank.double(centre[m])[1]) for pair in pairs[:-1]] for m in centre}
    return {module: lowrank.thin(lowrank.stack(several, p[:-1])) for module, several in apart.items() if several}
