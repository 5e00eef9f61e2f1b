"""Who misbehaves how, decided before a round from (seed, round, client) alone.

Every fault has a generator of its own: turning one dial moves no draw of another, and a higher rate keeps the faults of a lower one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import NormalDist

from raylora.core.seeds import generator


@dataclass(frozen=True, kw_only=True)
class Rates:
    """How often and how much; neutral as it stands."""

    dropout: float = 0.0  # chance that a client that was asked never answers
    late_s: float = 0.0  # mean of the exponential delay before a client starts
    slow: float = 0.0  # chance that a client is slow in a round
    slow_factor: float = 1.0  # what a slow client's computation takes, in times of its usual one
    outage: float = 0.0  # chance that a client's line is down when it wants to answer
    outage_s: float = 0.0  # how long


@dataclass(frozen=True, kw_only=True)
class Day:
    """What befalls one client in one round."""

    drops: bool = False
    late_s: float = 0.0
    slowness: float = 1.0
    outage_s: float = 0.0


def day(rates: Rates, seed: int, round: int, client: str) -> Day:
    """What befalls a client in a round."""

    def happens(what: str, chance: float) -> bool:
        return chance > 0 and bool(generator(seed, what, round, client).random() < chance)

    return Day(
        drops=happens("dropout", rates.dropout),
        late_s=float(generator(seed, "late", round, client).exponential(rates.late_s)) if rates.late_s else 0.0,
        slowness=rates.slow_factor if happens("slow", rates.slow) else 1.0,
        outage_s=rates.outage_s if happens("outage", rates.outage) else 0.0,
    )


def turn(seed: int, round: int, client: str) -> float:
    """In [0, 1): of two answers at the same time the one of the client with the smaller turn is first."""
    return float(generator(seed, "turn", round, client).random())


def some_of(ids: Iterable[str], share: float, seed: int, purpose: str) -> tuple[str, ...]:
    """round(share * N) of the ids (halves up), drawn without replacement; sorted. A larger share keeps those of a smaller one."""
    ordered = sorted(ids)
    count = math.floor(share * len(ordered) + 0.5)
    order = generator(seed, purpose).permutation(len(ordered))
    return tuple(sorted(ordered[k] for k in order[:count]))


def tenure(ids: Iterable[str], joins: float, leaves: float, rounds: int, seed: int) -> dict[str, tuple[int, int]]:
    """{client: (first round, round before which it leaves)}.

    A share `joins` of the clients is not there at first and comes before a round drawn uniformly from 1 to rounds - 1; a share `leaves`
    goes for good before a round drawn likewise (of both, after it has come). With one round nobody comes later or goes.
    """
    ordered = sorted(ids)
    late, early = (set(some_of(ordered, share, seed, purpose)) for share, purpose in ((joins, "joins"), (leaves, "leaves")))
    found = {}
    for client in ordered:
        first, end = 0, rounds
        if client in late and rounds > 1:
            first = int(generator(seed, "join round", client=client).integers(1, rounds))
        if client in early and first + 1 < rounds:
            end = int(generator(seed, "leave round", client=client).integers(first + 1, rounds))
        found[client] = (first, end)
    return found


# ---- devices and annotators: drawn once a client


def device(seed: int, client: str) -> float:
    """How good a client's device is among all devices: uniform in (0, 1). Its speed and its rank follow from it."""
    return min(max(float(generator(seed, "device", client=client).random()), 1e-12), 1 - 1e-12)


def line_quality(seed: int, client: str) -> float:
    """How good a client's line is among all lines: uniform in (0, 1)."""
    return min(max(float(generator(seed, "line", client=client).random()), 1e-12), 1 - 1e-12)


def spread_factor(quality: float, spread: float) -> float:
    """exp(spread * z), z the normal quantile of a quality in (0, 1): log-normal with median 1."""
    return math.exp(spread * NormalDist().inv_cdf(quality)) if spread else 1.0


def halved_rank(rank: int, quality: float, halvings: int) -> int:
    """rank / 2^j, at least 1: devices in halvings + 1 equal classes by quality, j = 0 for the best, `halvings` for the weakest."""
    return max(1, rank >> math.floor((1.0 - quality) * (halvings + 1)))


def contour_offset_mm(seed: int, client: str, spread_mm: float) -> float:
    """How much farther out than the true contours a client's annotator draws: normal, mean 0."""
    return float(generator(seed, "contours", client=client).normal(0.0, spread_mm)) if spread_mm else 0.0


def left_out_structure(seed: int, client: str, structures: int) -> int:
    """The structure, 1 to `structures`, that an annotator who leaves one out does not draw."""
    return int(generator(seed, "left out", client=client).integers(1, structures + 1))


def attendance(tenures: Mapping[str, tuple[int, int]], round: int) -> tuple[str, ...]:
    """The clients that are there in a round, sorted."""
    return tuple(client for client, (first, end) in sorted(tenures.items()) if first <= round < end)
