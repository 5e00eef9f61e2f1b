"""Rate-My-LoRA (He et al., ISBI 2025, arXiv 2501.03223): a client's step is shrunk by the rating of its model."""

from __future__ import annotations

import math
from collections.abc import Sequence

from raylora.core import lowrank
from raylora.core import tree as trees
from raylora.core.errors import InputError
from raylora.core.reduce import by_client
from raylora.core.types import Broadcast, Client, ClientUpdate, State, Strategy, Task
from raylora.strategies import options
from raylora.strategies.folding import folding
from raylora.strategies.rating import RULES, last_trained


def rate_my_lora(*, rule: str = "drop", temperature: float = 0.1, weights: str = "size", head: str = "shared", seed: int = 0) -> Strategy:
    """W_t = W_{t-1} + sum_c w_t(c) |D^c| B_t^c A_t^c / sum_c |D^c|. The w are not renormalised: one below 1 shrinks that client's step.

    rule, temperature: how w follows from scores on the rating cases (`rating`); the values of the last round are in the state's
    "weights". Traffic as in `folding`; the rule `peer` sends the other clients' adapters once more. reduce: none, the rating is one.
    """
    options.check(weights=weights, head=head)
    options.one_of("rule", rule, tuple(RULES))
    options.number("temperature", temperature, 0.0, open_low=True)
    weigh, scores = RULES[rule]
    if rule == "peer" and head == "private":
        raise InputError("strategy.rule: peer scores other clients' models, which a private head does not leave: expected head: shared")

    def rating(state: State, updates: Sequence[ClientUpdate]) -> tuple[Sequence[float], dict[str, object]]:
        w = weigh(state, updates, temperature, seed)
        trained = {u.client_id: u.metrics["score_trained"] for u in updates if "score_trained" in u.metrics}
        return w, {"weights": {u.client_id: x for u, x in zip(updates, w, strict=True)}, "trained": {**last_trained(state), **trained}}

    equal = math.isinf(temperature)
    compared = {"zero weight": f"the rule {rule} compares each client with all the others"}
    return folding(
        "rate_my_lora",
        rating,
        seed=seed,
        head=head,
        weights=weights,
        scores=scores,
        review=review if rule == "peer" else None,
        product="exact" if equal else "",
        exempt=compared if rule in ("softmax", "peer", "shuffled") and not equal else {},
    )


def review(state: State, updates: Sequence[ClientUpdate], client: Client) -> Broadcast | None:
    """The other clients' adapters, for this client to score W_{t-1} + B^c A^c on its rating cases: extra trees "peer:<client>" of unit
    pairs (and heads), whose scores come back as "score_peer:<client>"."""
    units = {f"peer:{u.client_id}": lowrank.to_unit(u.adapter, u.scaling) for u in by_client(updates) if u.client_id != client.id}
    others = {name: trees.freeze(tree) for name, tree in units.items()}
    return Broadcast(adapter={}, extra=others, task=Task(round=state.round, scores=tuple(others))) if others else None
