"""RoLoRA, alternating minimisation (Chen et al., NeurIPS 2025, arXiv 2502.01755)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import cast

from raylora.core import tree as trees
from raylora.core.reduce import Reduce, mean
from raylora.core.types import Broadcast, Client, ClientUpdate, Phase, State, Strategy, Task
from raylora.strategies import options
from raylora.strategies.averaging import averaging, in_units


def rolora(*, first: str = "B", period: int = 1, weights: str = "size", head: str = "shared", reduce: Reduce = mean) -> Strategy:
    """One factor is frozen and common, the other trained and averaged, in turn for `period` rounds each: B = sum_k p_k B_k with A common,
    then A = sum_k p_k A_k with B common. Each round is exact.

    Sent each way and layer: r out or r in floats: a client keeps the factor that it holds already, and in the first round
    needs neither; one that missed rounds gets both.
    """
    options.check(weights=weights, head=head)
    options.one_of("first", first, ("A", "B"))
    options.whole("period", period, 1)
    shared = trees.shared_names(head)
    turns = (first, "A" if first == "B" else "B")

    def task(round: int) -> Task:
        trained, frozen = turns if round // period % 2 == 0 else turns[::-1]
        phases = (Phase(trains=("*", f"!*.lora_{frozen}")),)
        return Task(round=round, phases=phases, uploads=trees.shared_names(head, f"*.lora_{trained}"))

    inner = averaging("rolora", task, shared, weights=weights, reduce=reduce, product="exact")

    def broadcast(state: State, client: Client) -> Broadcast:
        changed, last = remembered(state, "changed"), remembered(state, "seen").get(client.id, -1)
        whole = inner.broadcast(state, client)
        # A client gives away what it uploads: if it came too late in a round that changed nothing, it has that factor no longer.
        since = max(last + 1, state.round - period - 1)  # of so many rounds in a row both factors had their turn
        asked = {task(r).uploads for r in range(since, state.round)}
        given = {name for uploads in asked for name in trees.match(whole.adapter, uploads)}
        return replace(whole, adapter={n: array for n, array in whole.adapter.items() if n in given or changed.get(n, 0) > max(last, 0)})

    def aggregate(state: State, updates: Sequence[ClientUpdate]) -> State:
        after = inner.aggregate(state, updates)
        changed = dict.fromkeys(trees.match(after.trees["adapter"], task(state.round).uploads), after.round)
        seen = dict.fromkeys(sorted(update.client_id for update in updates), state.round)
        memory = {"changed": {**remembered(state, "changed"), **changed}, "seen": {**remembered(state, "seen"), **seen}}
        return replace(after, values={**after.values, **memory})

    return in_units(replace(inner, broadcast=broadcast, aggregate=aggregate))


def remembered(state: State, key: str) -> Mapping[str, int]:
    """changed: {name: round from which on it has its value}; seen: {client: round in which it last took part}."""
    return cast(Mapping[str, int], state.values.get(key, {}))
