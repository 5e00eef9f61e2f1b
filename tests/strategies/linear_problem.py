"""A federated problem with a known solution: client k fits y = W_k* x, W_k* of rank 2, by gradient steps in numpy.

L_k(W) = E ||(W - W_k*) x||^2 / 2 with E x x^T = H_k, so the gradient is (W - W_k*) H_k. The base starts at 0.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from raylora.core import lowrank
from raylora.core import tree as trees
from raylora.core.types import Client, Strategy, Tree
from raylora.strategies import toy

MODULE = "w"
OUT, IN = 5, 6
SITES = (
    Client(id="a", num_examples=3, rank=3, scaling=1.0),
    Client(id="b", num_examples=1, rank=3, scaling=1.0),
    Client(id="c", num_examples=2, rank=3, scaling=1.0),
)
EQUAL = tuple(Client(id=client.id, num_examples=2, rank=client.rank) for client in SITES)


def optimum(client: str) -> np.ndarray:
    """W_k* (OUT, IN): a common direction and, at 0.4 of its strength, one of its own."""
    return direction(0) + 0.4 * direction(ord(client))


def direction(number: int) -> np.ndarray:
    """A matrix of rank 1 and norm 1."""
    draw = np.random.default_rng([7, number])
    u, v = draw.normal(size=OUT), draw.normal(size=IN)
    return np.outer(u / np.linalg.norm(u), v / np.linalg.norm(v))


def covariance(client: str) -> np.ndarray:
    """H_k (IN, IN), with eigenvalues between 0.5 and 1.5."""
    draw = np.random.default_rng([8, ord(client)])
    q, _ = np.linalg.qr(draw.normal(size=(IN, IN)))
    return q @ np.diag(np.linspace(0.5, 1.5, IN)) @ q.T


def gradient(client: str, w: np.ndarray) -> np.ndarray:
    return (w - optimum(client)) @ covariance(client)


def loss(client: str, w: np.ndarray) -> float:
    return 0.5 * float(np.trace((w - optimum(client)) @ covariance(client) @ (w - optimum(client)).T))


def shares(sites: Sequence[Client]) -> list[float]:
    return [site.num_examples / sum(s.num_examples for s in sites) for site in sites]


def pooled_gradient(w: np.ndarray, sites: Sequence[Client] = SITES) -> np.ndarray:
    return sum(p * gradient(site.id, w) for p, site in zip(shares(sites), sites, strict=True))


def pooled_optimum(sites: Sequence[Client] = SITES, rows: np.ndarray | None = None) -> np.ndarray:
    """argmin sum p_k L_k(W); with `rows` (r, IN) among the W = B rows."""
    h = sum(p * covariance(site.id) for p, site in zip(shares(sites), sites, strict=True))
    target = sum(p * optimum(site.id) @ covariance(site.id) for p, site in zip(shares(sites), sites, strict=True))
    if rows is None:
        return target @ np.linalg.inv(h)
    return target @ rows.T @ np.linalg.inv(rows @ h @ rows.T) @ rows


def initial(strategy: Strategy, rank: int = 3, seed: int = 0) -> Tree:
    """The tree of the one module, without a head."""
    return trees.select(toy.initial_tree(strategy, rank, seed, {MODULE: (OUT, IN)}), ("*", "!head.*"))


@dataclass
class Descent:
    """Local training: gradient steps on the factors, with the gates, terms and control variates of the task."""

    rate: float
    steps: int = 1
    decay: float = np.inf  # rounds after which the rate is halved: rate / (1 + round / decay)
    controls: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)  # SCAFFOLD's c_k, kept by the clients

    def __call__(self, seat: toy.Seat) -> tuple[Tree, Mapping[str, Tree]]:
        received = {name: np.asarray(array, np.float64) for name, array in seat.tree.items()}
        tree, c = dict(received), seat.broadcast.extra.get("c", {})
        rate = self.rate / (1 + seat.broadcast.task.round / self.decay)
        own = self.controls.get(seat.client.id, {name: np.zeros(array.shape) for name, array in c.items()})
        for phase in seat.broadcast.task.phases:
            names = trees.match(tree, phase.trains)
            for _ in range(round(self.steps * phase.share)):
                slopes = self.slopes(seat, tree, phase.gates)
                for name in names:
                    slope = slopes[name] + phase.terms.get("prox", 0.0) * (tree[name] - received[name])
                    if phase.terms.get("control"):
                        slope = slope - own[name] + c[name]
                    tree[name] = tree[name] - rate * slope
        if not c:
            return tree, {}
        after = {name: own[name] - c[name] + (received[name] - tree[name]) / (self.steps * rate) for name in c}
        self.controls[seat.client.id] = after
        return tree, {"delta_c": {name: after[name] - own[name] for name in c}}

    def slopes(self, seat: toy.Seat, tree: Mapping[str, np.ndarray], gates: Mapping[str, float]) -> dict[str, np.ndarray]:
        """The gradient by name. A plain weight `w.weight` is a full one."""
        s, client = seat.client.scaling, seat.client.id
        g = gradient(client, model(seat, tree, gates))
        slopes = {f"{MODULE}.weight": g}
        for adapter in ("", "local", "rest"):
            for module, (a, b) in lowrank.pairs(tree, adapter).items():
                gate = s * gates.get(adapter, 1.0)
                slopes |= lowrank.named({module: (gate * b.T @ g, gate * g @ a.T)}, adapter)
        return slopes


def model(seat: toy.Seat, tree: Mapping[str, np.ndarray] | None = None, gates: Mapping[str, float] | None = None) -> np.ndarray:
    """The dense W of a client's model."""
    tree = seat.tree if tree is None else tree
    w = np.zeros((OUT, IN)) + seat.base.get(MODULE, 0.0) + tree.get(f"{MODULE}.weight", 0.0)
    for adapter in ("", "local", "rest"):
        for pair in lowrank.pairs(tree, adapter).values():
            w = w + seat.client.scaling * (gates or {}).get(adapter, 1.0) * lowrank.product(pair)
    return w


def sites_of(rank: int, sites: Sequence[Client] = SITES) -> tuple[Client, ...]:
    return tuple(replace(client, rank=rank) for client in sites)


def run(strategy: Strategy, rounds: int, learn: Descent, sites: Sequence[Client] = SITES, start: Tree | None = None) -> toy.Game:
    game = toy.start(strategy, sites[0].rank, initial=initial(strategy, sites[0].rank) if start is None else start)
    for _ in range(rounds):
        game = toy.play(game, sites, learn)
    return game


def server_model(game: toy.Game, sites: Sequence[Client] = SITES) -> np.ndarray:
    """W of the global part."""
    seat = toy.seat(game, sites[0])
    return model(seat, trees.select(seat.tree, ("*", "!local.*", "!rest.*")))


def distance(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
