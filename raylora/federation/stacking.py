"""How many clients share a pass: measured once, before the first round, and written down."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

BETTER = 0.97  # a larger stack is tried further only if a client's step took at most this share of the best time so far


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What a pass of so many clients costs."""

    clients: int
    seconds: float  # of one client's training step
    bytes: int  # the process's largest memory


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
    """Probes of growing stacks, until one is no faster or the next would pass the memory, by the growth between the last two."""
    found: list[Probe] = []
    for size in candidates(most):
        if len(found) > 1:
            a, b = found[-2:]
            if b.bytes + (b.bytes - a.bytes) / (b.clients - a.clients) * (size - b.clients) > memory_bytes:
                break
        found.append(probe(size))
        if len(found) > 1 and (found[-1].bytes > memory_bytes or found[-1].seconds > BETTER * min(p.seconds for p in found[:-1])):
            break
    return found


def choose(found: Sequence[Probe], clients: int, actors: int, memory_bytes: float) -> int:
    """The stack with the shortest round on so many actors: ceil(stacks / actors) stacks after each other; the smaller of two equals."""

    def round_seconds(probe: Probe) -> float:
        stacks = -(-clients // probe.clients)
        return -(-stacks // actors) * probe.clients * probe.seconds

    fitting = [probe for probe in found if probe.bytes <= memory_bytes] or [found[0]]
    return min(fitting, key=lambda probe: (round_seconds(probe), probe.clients)).clients


def in_words(found: Sequence[Probe], chosen: int) -> str:
    """What was measured, for the run's record."""
    tried = ", ".join(f"{p.clients}: {1000 * p.seconds:.1f} ms a client's step, {p.bytes / 1e6:.0f} MB" for p in found)
    return f"training.stack: auto is {chosen} here (clients in a pass: {tried})"
