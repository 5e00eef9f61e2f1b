"""From several trees to one: the size-weighted mean and the robust reductions that may stand in its place.

A reduction acts on the movements (what a client sent minus what it had received), so that a clipped or trimmed client changes nothing.
On adapters it acts on the factors; a `Weighing` acts through weights alone, so methods that sum products can use it on products too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, overload, runtime_checkable

import numpy as np

from raylora.core import lowrank
from raylora.core import tree as trees
from raylora.core.errors import InputError, RunError
from raylora.core.types import ClientUpdate, Tree

Reduce = Callable[[Sequence[Tree], Sequence[float]], Tree]
"""(trees, weights) to one tree, float64. The weights need no particular sum."""


@runtime_checkable
class Seeded(Protocol):
    """A reduction that draws noise: `at` gives the one of a round."""

    def at(self, round: int) -> Reduce: ...


def by_client(updates: Sequence[ClientUpdate]) -> list[ClientUpdate]:
    """The updates sorted by client id, so that the order of arrival changes no bit. Raises RunError if there is none."""
    if not updates:
        raise RunError("no client update arrived in this round")
    return sorted(updates, key=lambda update: update.client_id)


def shares(updates: Sequence[ClientUpdate], weights: str) -> list[float]:
    """p_k: the clients' shares of the training patients ("size"), or 1/K ("uniform"). Raises InputError for another word."""
    if weights not in ("size", "uniform"):
        raise InputError(f"strategy.weights: expected size or uniform, found {weights}")
    sizes = [update.num_examples if weights == "size" else 1 for update in updates]
    if sum(sizes) == 0:
        raise RunError("the clients of this round have no training patient together")
    return [size / sum(sizes) for size in sizes]


def movement(received: Tree, sent: Sequence[Tree], weights: Sequence[float], reduce: Reduce, round: int) -> Tree:
    """The reduction of (sent_k - received), in float64."""
    reduce = reduce.at(round) if isinstance(reduce, Seeded) else reduce
    return reduce(Movements(received, sent), weights)


class Movements(Sequence[Tree]):
    """sent_k - received in float64."""

    def __init__(self, received: Tree, sent: Sequence[Tree]) -> None:
        self.received = {name: np.asarray(array, dtype=np.float64) for name, array in received.items()}
        self.sent = sent

    def __len__(self) -> int:
        return len(self.sent)

    @overload
    def __getitem__(self, index: int) -> Tree: ...

    @overload
    def __getitem__(self, index: slice) -> Movements: ...

    def __getitem__(self, index: int | slice) -> Tree | Movements:
        if isinstance(index, slice):
            return Movements(self.received, self.sent[index])
        return Movement(self.received, self.sent[index])


class Movement(Mapping[str, np.ndarray]):
    """Each of its arrays is made when it is looked at: the mean of hundreds of clients holds one at a time."""

    def __init__(self, received: Tree, sent: Tree) -> None:
        self.received, self.sent = received, sent

    def __getitem__(self, name: str) -> np.ndarray:
        moved = np.array(self.sent[name], dtype=np.float64)
        moved -= self.received[name]  # in place: half the time of a subtraction that casts as it goes
        return moved

    def __iter__(self) -> Iterator[str]:
        return iter(self.sent)

    def __len__(self) -> int:
        return len(self.sent)


def normalised(weights: Sequence[float]) -> np.ndarray:
    p = np.asarray(weights, dtype=np.float64)
    return np.asarray(p / p.sum())


def mean(several: Sequence[Tree], weights: Sequence[float]) -> Tree:
    """sum_k w_k tree_k / sum_k w_k."""
    return trees.weighted_sum(several, normalised(weights).tolist())


def present(several: Sequence[Tree], weights: Sequence[float]) -> tuple[list[Tree], list[float]]:
    """Without the clients of weight 0, and with their arrays at hand."""
    kept = [({**tree}, w) for tree, w in zip(several, weights, strict=True) if w > 0]
    return [tree for tree, _ in kept], [w for _, w in kept]


def median() -> Reduce:
    """The median of each coordinate; every client counts once, whatever its size (Yin et al. 2018, arXiv 1803.01498)."""

    def reduce(several: Sequence[Tree], weights: Sequence[float]) -> Tree:
        kept, _ = present(several, weights)
        return {name: np.median(np.stack([tree[name] for tree in kept]).astype(np.float64), axis=0) for name in kept[0]}

    return reduce


def trimmed(trim: float, clients: int) -> int:
    """How many values a trimmed mean leaves out at each end: floor(trim * K)."""
    return math.floor(trim * clients + 1e-9)


def trimmed_mean(trim: float) -> Reduce:
    """Per coordinate, without the floor(trim * K) largest and smallest values, the mean of the others (Yin et al. 2018), weighted by the
    clients' shares: with `weights: size` a large liar just inside the trim counts by its size, with `uniform` it counts once.
    Raises InputError unless 0 <= trim < 0.5."""
    if not 0 <= trim < 0.5:
        raise InputError(f"reduce trimmed_mean: expected trim in [0, 0.5), found {trim}")

    def reduce(several: Sequence[Tree], weights: Sequence[float]) -> Tree:
        kept, p = present(several, weights)
        out = trimmed(trim, len(kept))
        if out == 0:
            return mean(kept, p)
        result = {}
        for name in kept[0]:
            values = np.stack([tree[name] for tree in kept]).astype(np.float64)  # (K, ...)
            order = np.argsort(values, axis=0, kind="stable")[out : len(kept) - out]
            w = np.asarray(p)[order]  # (K - 2 out, ...)
            result[name] = np.sum(w * np.take_along_axis(values, order, axis=0), axis=0) / np.sum(w, axis=0)
        return result

    return reduce


@dataclass(frozen=True)
class Weighing:
    """A reduction that is a weighted mean whose weights follow from the distances between the clients."""

    weigh: Callable[[np.ndarray, np.ndarray], np.ndarray]  # squared distances (K, K), shares (K,) -> shares (K,) of sum 1
    needs: int = 1  # clients

    def __call__(self, several: Sequence[Tree], weights: Sequence[float]) -> Tree:
        kept, p = present(several, weights)
        distances = np.array([[trees.inner(gap, gap) for other in kept for gap in (trees.subtract(tree, other),)] for tree in kept])
        return mean(kept, self.weigh(distances, normalised(p)).tolist())


def multi_krum(f: int, m: int) -> Weighing:
    """The weighted mean of the m clients with the smallest sum of squared distances to their K - f - 2 nearest (Blanchard et al. 2017).
    Raises InputError if fewer than 2f + 3 clients take part, or fewer than m + f: a liar would be among the m."""
    if not (isinstance(f, int) and isinstance(m, int)) or f < 0 or m < 1:
        raise InputError(f"reduce multi_krum: expected whole numbers f >= 0 and m >= 1, found f={f}, m={m}")
    needs = max(2 * f + 3, m + f)

    def weigh(distances: np.ndarray, p: np.ndarray) -> np.ndarray:
        count = len(p)
        if count < needs:
            raise InputError(f"reduce krum: expected at least {needs} clients for f={f}, m={m}, found {count}")
        nearest = np.sort(distances + np.diag(np.full(count, np.inf)), axis=1)[:, : count - f - 2]
        chosen = np.argsort(nearest.sum(axis=1), kind="stable")[:m]
        kept = np.zeros(count)
        kept[chosen] = p[chosen]
        return normalised(kept.tolist())

    return Weighing(weigh, needs)


def krum(f: int) -> Weighing:
    """The one client with the smallest sum of squared distances to its K - f - 2 nearest. Needs 2f + 3 clients."""
    return multi_krum(f, 1)


def geometric_median(eps: float = 1e-6, iterations: int = 1000) -> Weighing:
    """argmin_u sum_k p_k ||u - u_k|| by smoothed Weiszfeld steps from the mean (RFA, Pillutla et al. 2022, arXiv 1912.13445), each with the
    weights p_k / max(eps, ||u - u_k||), until these stand still or for so many iterations. Clients 1e8 times as far from the most central one
    as half of the others are left out: beside their squares float64 could not tell the others apart."""
    if not eps > 0 or not isinstance(iterations, int) or iterations < 1:
        raise InputError(f"reduce geometric_median: expected eps > 0 and whole iterations >= 1, found eps={eps}, iterations={iterations}")

    def weigh(distances: np.ndarray, p: np.ndarray) -> np.ndarray:
        p = np.where(_beyond_telling(np.sqrt(distances), p), 0.0, p)
        p = p / p.sum()
        distances = np.where(np.outer(p, p) > 0, distances, 0.0)
        a = p
        for _ in range(iterations):
            d = distances @ a
            to_centre = np.sqrt(np.maximum(d - 0.5 * (a @ d), 0.0))  # ||sum_j a_j u_j - u_k||, from the distances alone
            after = p / np.maximum(eps, to_centre)
            after = after / after.sum()
            still = np.all(np.abs(after - a) <= 1e-9 * after)
            a = after
            if still:
                break
        return np.asarray(a)

    return Weighing(weigh)


def _beyond_telling(far: np.ndarray, p: np.ndarray) -> np.ndarray:
    """Whom (K,) `geometric_median` leaves out. far: distances (K, K)."""
    from_centre = far[np.argmin(far @ p)]
    apart = np.flatnonzero(from_centre)
    order = apart[np.argsort(from_centre[apart], kind="stable")]
    if not len(order):
        return np.zeros(len(p), bool)
    half = order[np.searchsorted(np.cumsum(p[order]), 0.5 * p[order].sum())]
    return np.asarray(from_centre > 1e8 * from_centre[half])


def require_weighing(reduce: Reduce, method: str) -> None:
    """Raise InputError for a reduction by coordinates or with noise: on products it would need the dense matrix."""
    if reduce is not mean and not isinstance(reduce, Weighing):
        raise InputError(f"strategy.reduce: {method} adds products, which are never built: expected krum, multi_krum or geometric_median")


def weigh_products(reduce: Reduce, several: Sequence[Mapping[str, lowrank.Pair]], weights: Sequence[float]) -> list[float]:
    """The weights that a `Weighing` gives to the clients' products {module: (A, B)} (unit pairs); the mean leaves them as they are."""
    if not isinstance(reduce, Weighing):
        return list(weights)
    kept = [k for k, w in enumerate(weights) if w > 0]
    gram = np.array([[sum(lowrank.inner(several[i][m], several[j][m]) for m in several[i]) for j in kept] for i in kept])
    distances = np.maximum(np.diag(gram)[:, None] + np.diag(gram)[None, :] - 2 * gram, 0.0)
    found = np.zeros(len(weights))
    found[kept] = reduce.weigh(distances, normalised([weights[k] for k in kept]))
    return [float(w) for w in found]


REDUCTIONS: Mapping[str, Callable[..., Reduce]] = {
    "mean": lambda: mean,
    "median": median,
    "trimmed_mean": trimmed_mean,
    "krum": krum,
    "multi_krum": multi_krum,
    "geometric_median": geometric_median,
}
