"""What a byzantine client sends in place of its honest update. Pure functions; what comes out is finite float32 of the honest shapes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from raylora.core import tree as trees
from raylora.core.seeds import generator
from raylora.core.types import Tree

LARGEST = float(np.finfo(np.float32).max) / 4  # a lie that is not finite would be caught by the server's checks


@dataclass(frozen=True, kw_only=True)
class Attack:
    """How a client lies: one of `KINDS`, and a factor on the movement that it claims."""

    kind: str
    strength: float = 1.0
    seed: int = 0

    def sent(self, honest: Tree, received: Tree, first: Tree, round: int, client: str) -> Tree:
        """What goes out. honest: the uploads after honest training; received: the same names before it; first: what this client sent in
        its first round (names or shapes that it did not send are left as they are)."""
        lie = KINDS[self.kind](self, honest, received, first, round, client)
        return trees.freeze({name: np.clip(np.nan_to_num(value), -LARGEST, LARGEST) for name, value in lie.items()})


Kind = Callable[[Attack, Tree, Tree, Tree, int, str], Tree]


def negate(attack: Attack, honest: Tree, received: Tree, first: Tree, round: int, client: str) -> Tree:
    """The movement negated and scaled, so that the product moves by -strength times its honest movement.

    Negating both factors of a pair would cancel: A keeps its honest value and B solves
    min ||B' A - (B0 A0 - strength (B A - B0 A0))||. This is exact where the pair had started from B0 = 0 or one factor alone is sent, and
    otherwise the closest product in the rows of A. Other names: received - strength (honest - received).
    """
    s = attack.strength
    sent = {name: received[name] - s * (np.asarray(value, np.float64) - received[name]) for name, value in honest.items()}
    for name_a, a in honest.items():
        name_b = name_a.removesuffix("A") + "B"
        if name_a.endswith(".lora_A") and name_b in honest:
            a64, b64, a0, b0 = (np.asarray(x, np.float64) for x in (a, honest[name_b], received[name_a], received[name_b]))
            sent[name_a] = a64
            sent[name_b] = -s * b64 + (1 + s) * b0 @ (a0 @ np.linalg.pinv(a64))
    return sent


def gaussian(attack: Attack, honest: Tree, received: Tree, first: Tree, round: int, client: str) -> Tree:
    """Noise of strength times the root mean square of the honest movement, tensor by tensor."""
    return _noisy(attack.strength, honest, received, generator(attack.seed, "byzantine noise", round, client))


def collude(attack: Attack, honest: Tree, received: Tree, first: Tree, round: int, client: str) -> Tree:
    """As gaussian, but all byzantine clients of a round move in the same direction."""
    return _noisy(attack.strength, honest, received, generator(attack.seed, "byzantine noise", round))


def stale(attack: Attack, honest: Tree, received: Tree, first: Tree, round: int, client: str) -> Tree:
    """What it sent in its first round, again: a replay, whatever has been learnt since."""
    old = {name: first[name] if name in first and first[name].shape == value.shape else value for name, value in honest.items()}
    return trees.add(received, trees.subtract(old, received), attack.strength)


def scaled(attack: Attack, honest: Tree, received: Tree, first: Tree, round: int, client: str) -> Tree:
    """The honest movement times strength: for clients whose labels are what lies."""
    return trees.add(received, trees.subtract(honest, received), attack.strength) if attack.strength != 1.0 else honest


def _noisy(strength: float, honest: Tree, received: Tree, draw: np.random.Generator) -> Tree:
    moved = {}
    for name in sorted(honest):
        movement = np.asarray(honest[name], np.float64) - received[name]
        size = strength * float(np.sqrt(np.mean(movement**2)))
        moved[name] = received[name] + size * draw.standard_normal(movement.shape)
    return moved


KINDS: Mapping[str, Kind] = {"negate": negate, "gaussian": gaussian, "label_flip": scaled, "stale": stale, "collude": collude}
