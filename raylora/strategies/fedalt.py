"""FedALT, one's own adapter beside the others' (Bian et al., AAAI 2026, arXiv 2503.11880)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

from raylora.core import lowrank
from raylora.core import tree as trees
from raylora.core.errors import InputError
from raylora.core.reduce import Reduce, Seeded, Weighing, by_client, mean, movement, shares
from raylora.core.types import Broadcast, Client, ClientUpdate, Phase, State, Strategy, Task, Tree
from raylora.strategies import options


def fedalt(
    *, router: str = "local", weights: str = "size", head: str = "shared", reduce: Reduce = mean, clients: int | None = None
) -> Strategy:
    """h = W_0 x + g_0 B^RoW A^RoW x + g_1 B_k A_k x with g = softmax(W_r x), (A, B)^RoW_k = mean over j != k of the others' last
    (A_j, B_j), frozen. A client trains its own pair, which is sent but never overwritten, and its router.

    router: local (private), shared (averaged like the head) or none (g_0 = g_1 = 1). Sent each way and layer: r (in + out) floats, 2 in
    more with a shared router; the server keeps every client's pair. The paper's mean is uniform; sizes are our default. A reduction that
    needs m clients has a mean of others once m of them have sent a pair.
    """
    options.check(weights=weights, head=head)
    options.one_of("router", router, ("local", "shared", "none"))
    if isinstance(reduce, Seeded):
        raise InputError("strategy.reduce: fedalt sends each client another mean, expected a reduction without noise")
    needs = reduce.needs if isinstance(reduce, Weighing) else 1
    if clients is not None and needs > max(clients - 1, 1):
        raise InputError(
            f"strategy.reduce: fedalt reduces the other clients' pairs: expected at least {needs + 1} clients, found {clients}"
        )
    heads = ((*trees.HEAD,) if head == "shared" else ()) + (("router.*",) if router == "shared" else ())
    uploads, phases = (*heads, *trees.GLOBAL), (Phase(trains=("*", "!rest.*")),)

    def init(tree: Tree) -> State:
        start = trees.freeze(trees.select(tree, uploads))
        return State(
            trees={"head": trees.select(start, heads), "start": trees.select(start, trees.GLOBAL)}, values={"round": 0, "sizes": {}}
        )

    def broadcast(state: State, client: Client) -> Broadcast:
        lowrank.require_rank(state.trees["start"], client.id, client.rank, "fedalt")
        task = Task(round=state.round, phases=phases, uploads=uploads, keeps=trees.GLOBAL)
        others = sorted(key for key in state.trees if key.startswith("of:") and key != f"of:{client.id}")
        rest = trees.zeros(state.trees["start"])
        if len(others) >= needs:
            rest = trees.add(
                rest, movement(rest, [state.trees[key] for key in others], [sizes(state)[k] for k in others], reduce, state.round)
            )
        sent = {**state.trees["head"], **{f"rest.{name}": array for name, array in rest.items()}}
        return Broadcast(adapter=trees.freeze(sent), task=task)

    def aggregate(state: State, updates: Sequence[ClientUpdate]) -> State:
        updates = by_client(updates)
        for update in updates:
            expected = {**state.trees["head"], **state.trees["start"]}
            trees.require_same(expected, update.adapter, f"round {state.round + 1}, client {update.client_id}")
        before, p = state.trees["head"], shares(updates, weights)
        head_tree = trees.add(before, movement(before, [trees.select(u.adapter, heads) for u in updates], p, reduce, state.round))
        owns = {f"of:{u.client_id}": trees.freeze(trees.select(u.adapter, trees.GLOBAL)) for u in updates}
        counts = {f"of:{u.client_id}": u.num_examples if weights == "size" else 1 for u in updates}
        values = {**state.values, "round": state.round + 1, "sizes": {**sizes(state), **counts}}
        return State(trees={**state.trees, "head": trees.freeze(head_tree), **owns}, values=values)

    adapters = {"": None, "rest": None}
    return Strategy(
        init=init, broadcast=broadcast, aggregate=aggregate, name="fedalt", adapters=adapters, router=router != "none", mixed_ranks=False,
        leaves_self_out=True,
    )  # fmt: skip


def sizes(state: State) -> Mapping[str, float]:
    """{"of:<client>": what its pair counts in the means of the others}."""
    return cast(Mapping[str, float], state.values["sizes"])
