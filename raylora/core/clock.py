"""The virtual clock: how long a client's round takes on its line and device, and when the server goes on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

BITS_PER_MBIT = 1e6


@dataclass(frozen=True, kw_only=True)
class Line:
    """A client's connection."""

    up_mbit: float = math.inf  # Mbit/s
    down_mbit: float = math.inf
    latency_s: float = 0.0  # of one message


@dataclass(frozen=True, kw_only=True)
class Trip:
    """A client's way through one round, but for what it sends and receives."""

    line: Line = Line()
    compute_s: float = 0.0
    wait_s: float = 0.0  # before it starts, and for a line that is down
    turn: float = 0.0  # drawn: of two answers at the same time the one with the smaller turn is first

    def seconds(self, bytes_down: int, bytes_up: int) -> float:
        """From being asked to having answered: one message down, the computation, one message up."""
        return self.wait_s + self.compute_s + exchange_s(self.line, bytes_down, bytes_up)


def exchange_s(line: Line, bytes_down: int, bytes_up: int) -> float:
    """A message down and one up."""
    return 2 * line.latency_s + transfer_s(bytes_down, line.down_mbit) + transfer_s(bytes_up, line.up_mbit)


def transfer_s(size_bytes: int, mbit: float) -> float:
    """Seconds of so many bytes at so many Mbit/s."""
    return 8 * size_bytes / (mbit * BITS_PER_MBIT)


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """What ends a round: the answers of a share of those asked, or a deadline. As it stands: everybody's answer."""

    share: float = 1.0
    deadline_s: float = math.inf


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """What a round meets, drawn before it starts; nothing as it stands."""

    dropped: frozenset[str] = frozenset()  # clients that are asked and never answer
    trips: Mapping[str, Trip] = field(default_factory=dict)  # client -> its way; absent: it takes no time
    waiting: Waiting = Waiting()

    def trip(self, client: str) -> Trip:
        return self.trips.get(client, Trip())


NEUTRAL = Conditions()


def close(
    answers: Mapping[str, float], asked: int, waiting: Waiting, turns: Mapping[str, float] | None = None
) -> tuple[tuple[str, ...], float]:
    """(the clients whose answers count, by id; seconds until the server goes on).

    answers: client -> seconds after the start of the round, of those that answer at all; asked: how many were asked. The first
    ceil(share * asked) answers within the deadline count; of two at the same time the one with the smaller turn, then id, is first. If
    fewer come, the server waits until the deadline; without one, until the last of them (it knows when nobody is left).
    """
    wanted, turns = math.ceil(waiting.share * asked - 1e-9), turns or {}
    in_time = sorted((seconds, turns.get(client, 0.0), client) for client, seconds in answers.items() if seconds <= waiting.deadline_s)[
        :wanted
    ]
    used = tuple(sorted(client for _, _, client in in_time))
    if len(in_time) == wanted or math.isinf(waiting.deadline_s):
        return used, in_time[-1][0] if in_time else 0.0
    return used, waiting.deadline_s


def freshness(staleness: int, exponent: float) -> float:
    """(1 + tau)^-a, the weight of an update that started tau server versions ago (FedBuff, Nguyen et al. 2022, arXiv 2106.06639, with
    a = 1/2 there)."""
    return float((1.0 + staleness) ** -exponent)
