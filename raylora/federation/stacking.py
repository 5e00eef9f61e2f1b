"""How many clients share a pass: measured once, before the first round, and written down."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

BETTER = 0.97  # a larger stack is tried further only if a client's step took at most this share of the best time so far


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What a pass of so many clients costs."""

    clients: int
    seconds: float  # of one client's training step
    bytes: float  # the process's largest memory; inf: more than there is
    before: float = 0.0  # what it held before


def most_per_pass(clients: int, actors: int) -> int:
    """So many that every actor has a stack."""
    return -(-clients // max(1, actors))


def candidates(most: int) -> list[int]:
    """1, 2, 4, ... and the most itself.

    >>> candidates(6)
    [1, 2, 4, 6]
    """
    powers = [2**i for i in range(most.bit_length()) if 2**i < most]
    return [*powers, most]


def measure(probe: Callable[[int], Probe], most: int, memory_bytes: float) -> list[Probe]:
    """Probes of growing stacks, until one is no faster or the next would pass the memory, by the growth between the last two (of the first,
    what it added to what the process held)."""
    found: list[Probe] = []
    for size in candidates(most):
        if found and _expected_bytes(found, size) > memory_bytes:
            break
        found.append(probe(size))
        if len(found) > 1 and found[-1].seconds > BETTER * min(p.seconds for p in found[:-1]):
            break
    return found


def _expected_bytes(found: Sequence[Probe], size: int) -> float:
    """What a pass of `size` clients would take: at least what the last one took."""
    last = found[-1]
    clients, taken = (found[-2].clients, found[-2].bytes) if len(found) > 1 else (0, last.before)
    return last.bytes + max(0.0, last.bytes - taken) / (last.clients - clients) * (size - last.clients)


def choose(found: Sequence[Probe], clients: int, actors: int, memory_bytes: float) -> int:
    """The stack with the shortest round on so many actors: ceil(stacks / actors) stacks after each other; the smaller of two equals."""

    def round_seconds(probe: Probe) -> float:
        stacks = -(-clients // probe.clients)
        return -(-stacks // actors) * probe.clients * probe.seconds

    fitting = [probe for probe in found if probe.bytes <= memory_bytes] or [found[0]]
    return min(fitting, key=lambda probe: (round_seconds(probe), probe.clients)).clients


def in_words(found: Sequence[Probe], chosen: int) -> str:
    """What was measured, for the run's record."""
    tried = ", ".join(
        f"{p.clients}: {1000 * p.seconds:.1f} ms a client's step, {p.bytes / 1e6:.0f} MB"
        if math.isfinite(p.bytes)
        else f"{p.clients}: no room"
        for p in found
    )
    return f"training.stack: auto is {chosen} here (clients in a pass: {tried})"
