"""How a client's weight follows from scores on rating cases. The sentence in the paper leaves the rule open: all of these are ours.

v is a score in [0, 1], higher is better; T the temperature. Every rule gives w = 1 as T grows without bound.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import cast

import numpy as np

from raylora.core.errors import RunError
from raylora.core.seeds import generator
from raylora.core.types import ClientUpdate, State

Rule = Callable[[State, Sequence[ClientUpdate], float, int], list[float]]
"""(state, updates by client id, T, seed) to w of each."""


def score(update: ClientUpdate, name: str) -> float:
    """A score that the task asked for. Raises RunError if the client did not send it."""
    key = f"score_{name}"
    if key not in update.metrics or not math.isfinite(update.metrics[key]):
        raise RunError(f"client {update.client_id}: expected a finite {key} among its metrics, found {sorted(update.metrics)}")
    return update.metrics[key]


def last_trained(state: State) -> Mapping[str, float]:
    """{client: score of its model after its last local training}."""
    return cast(Mapping[str, float], state.values.get("trained", {}))


def drop(state: State, updates: Sequence[ClientUpdate], temperature: float, seed: int) -> list[float]:
    """exp(-max(0, v_local - v_global) / T): what the aggregate lost against the client's own model. v_local is the client's model after
    its last training, v_global the aggregate it received next, so w comes one round late; 1 where there is no earlier round."""
    own = last_trained(state)
    return [math.exp(-max(0.0, own[u.client_id] - score(u, "received")) / temperature) if u.client_id in own else 1.0 for u in updates]


def trend(state: State, updates: Sequence[ClientUpdate], temperature: float, seed: int) -> list[float]:
    """exp(-max(0, v_{t-1} - v_t) / T) of the client's own score after training."""
    own = last_trained(state)
    return [math.exp(-max(0.0, own.get(u.client_id, -math.inf) - score(u, "trained")) / temperature) for u in updates]


def softmax(state: State, updates: Sequence[ClientUpdate], temperature: float, seed: int) -> list[float]:
    """C exp(v_c / T) / sum_j exp(v_j / T) over the C clients of the round."""
    v = np.array([score(u, "trained") for u in updates])
    odds = np.exp((v - v.max()) / temperature)
    return [float(w) for w in len(updates) * odds / odds.sum()]


def shuffled(state: State, updates: Sequence[ClientUpdate], temperature: float, seed: int) -> list[float]:
    """The weights of `drop`, permuted over the clients: a placebo."""
    w = drop(state, updates, temperature, seed)
    return [w[k] for k in generator(seed, "shuffled", state.round).permutation(len(w))]


def peer(state: State, updates: Sequence[ClientUpdate], temperature: float, seed: int) -> list[float]:
    """(v_c / max_j v_j)^(1 / T), v_c the mean over the other clients of the score of W_{t-1} + B^c A^c on their rating cases."""
    if len(updates) == 1:
        return [1.0]
    v = [float(np.mean([score(other, f"peer:{u.client_id}") for other in updates if other is not u])) for u in updates]
    return [(max(0.0, mean) / max(v)) ** (1.0 / temperature) if max(v) > 0 else 1.0 for mean in v]


RULES: Mapping[str, tuple[Rule, tuple[str, ...]]] = {
    "drop": (drop, ("received", "trained")),
    "trend": (trend, ("trained",)),
    "softmax": (softmax, ("trained",)),
    "peer": (peer, ()),
    "shuffled": (shuffled, ("received", "trained")),
}
"""{rule: (its function, the scores that the clients are asked for)}"""
