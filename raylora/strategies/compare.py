"""How far two models, or two states of a server, are apart."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence

import numpy as np

from raylora.core import lowrank
from raylora.core.types import Client, State
from raylora.strategies import toy

TIGHT = 1e-6
"""Relative, for what is exact but for the rounding of float32 factors."""


def view(game: toy.Game, client: Client) -> dict[str, np.ndarray]:
    """Everything that a client's next round starts from."""
    seat = toy.seat(game, client)
    extra = {f"{key}/{name}": array for key, tree in seat.broadcast.extra.items() for name, array in tree.items()}
    return {**seat.tree, **{f"base/{module}": dense for module, dense in seat.base.items()}, **extra}


def pooled(seats: Sequence[toy.Seat]) -> dict[str, np.ndarray]:
    """{module: sum p_k (base + scaling_k B_k A_k)} of what the clients hold."""
    total = sum(seat.client.num_examples for seat in seats)
    parts = [{m: dense for m, dense in toy.global_part(seat).items() if m in lowrank.pairs(seat.tree)} for seat in seats]
    return {m: np.sum([s.client.num_examples / total * part[m] for s, part in zip(seats, parts, strict=True)], axis=0) for m in parts[0]}


def best(dense: np.ndarray, rank: int) -> np.ndarray:
    """The best approximation of a rank, from the dense matrix (Eckart-Young)."""
    u, s, vt = np.linalg.svd(dense)
    return np.asarray((u[:, :rank] * s[:rank]) @ vt[:rank])


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    """||found - expected|| / ||expected||."""
    return float(np.linalg.norm(found - expected) / max(float(np.linalg.norm(expected)), 1e-12))


def unequal(expected: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray], words: str) -> str | None:
    """A sentence on the first name that differs by more than rounding."""
    for name in expected:
        if (gap := relative(found[name], expected[name])) > 10 * TIGHT and np.abs(found[name] - expected[name]).max() > TIGHT:
            return f"{name} {words} {gap:.1e} (relative)"
    return None


def digest(state: State) -> str:
    """SHA-256 of names, shapes, bytes and JSON of a state."""
    sha = hashlib.sha256(json.dumps(state.values, sort_keys=True, default=repr).encode())
    for key in sorted(state.trees):
        for name in sorted(state.trees[key]):
            array = state.trees[key][name]
            sha.update(f"{key}/{name}/{array.shape}/{array.dtype}".encode() + np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()
