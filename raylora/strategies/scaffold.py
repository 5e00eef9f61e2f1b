"""SCAFFOLD (Karimireddy et al., ICML 2020, arXiv 1910.06378), on the factors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from raylora.core import tree as trees
from raylora.core.reduce import by_client, mean
from raylora.core.types import Broadcast, Client, ClientUpdate, Phase, State, Strategy, Task, Tree
from raylora.strategies import options
from raylora.strategies.averaging import averaging, follow


def scaffold(*, server_lr: float = 1.0, weights: str = "size", clients: int | None = None) -> Strategy:
    """Local step y <- y - eta (g - c_k + c); c_k+ = c_k - c + (w - y) / (K eta) (option II);
    w <- w + eta_g sum_k p_k (y_k - w); c <- c + (|S| / N) mean_k (c_k+ - c_k).

    Derived for SGD: the control variate is a gradient. server_lr: eta_g. clients: N (None: everybody takes part in each round).
    The extra tree "c" goes down, "delta_c" comes back, so traffic is twice FedIT's; c_k stays at the client. The head is shared.
    """
    options.check(weights=weights)
    options.number("server_lr", server_lr, 0.0, open_low=True)
    uploads = trees.shared_names("shared")
    phases = (Phase(trains=("*",), terms={"control": 1.0}),)
    inner = averaging(
        "scaffold",
        lambda round: Task(round=round, phases=phases, uploads=uploads),
        uploads,
        weights=weights,
        server=lambda state, step: follow(state, trees.scale(step, server_lr)),
        product="inexact",
        optimiser="sgd",
        exempt={
            "zero weight": "every client's control variate counts once, whatever its size",
            **({} if server_lr == 1.0 else {"own product": "a server rate other than 1 overshoots or stops short"}),
        },
    )

    def init(tree: Tree) -> State:
        state = inner.init(tree)
        return replace(state, trees={**state.trees, "c": trees.zeros(state.trees["adapter"])})

    def broadcast(state: State, client: Client) -> Broadcast:
        return replace(inner.broadcast(state, client), extra={"c": state.trees["c"]})

    def aggregate(state: State, updates: Sequence[ClientUpdate]) -> State:
        deltas = [update.extra.get("delta_c", {}) for update in by_client(updates)]
        for update, delta in zip(by_client(updates), deltas, strict=True):
            trees.require_same(state.trees["c"], delta, f"round {state.round + 1}, client {update.client_id}, delta_c")
        part = len(updates) / (clients or len(updates))
        c = trees.freeze(trees.add(state.trees["c"], mean(deltas, [1.0] * len(deltas)), part))
        after = inner.aggregate(state, updates)
        return replace(after, trees={**after.trees, "c": c})

    return replace(inner, init=init, broadcast=broadcast, aggregate=aggregate)
