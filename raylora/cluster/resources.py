"""What a run asks of the machine, and whether that exists: checked before anything is started, because Ray would wait for ever."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass

from raylora.core.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Available:
    cpus: float
    gpus: float
    where: str  # for messages


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the actors of one experiment need."""

    groups: tuple[tuple[str, ...], ...]  # the clients of each actor
    cpus: float  # of one actor
    gpus: float


def local() -> Available:
    """This process's CPUs (its affinity, not the machine's) and visible GPUs."""
    return Available(cpus=len(os.sched_getaffinity(0)), gpus=_visible_gpus(), where="this machine")


def _visible_gpus() -> int:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([item for item in visible.split(",") if item.strip() not in ("", "-1")])
    return len([name for name in os.listdir("/dev") if name.startswith("nvidia") and name[6:].isdigit()]) if os.path.isdir("/dev") else 0


def request(
    weights: Mapping[str, float], *, cpus_per_client: float, gpus_per_client: float, clients_per_actor: int | str, available: Available
) -> Request:
    """Spread clients over actors, the heaviest first, and check that all actors fit at once.

    `weights` are the clients' expected costs (training patients). One client at a time computes in an actor, so an actor needs one client's
    share. Raises InputError when the shares do not exist or a GPU share does not divide one.
    """
    if 0 < gpus_per_client < 1 and abs(round(1 / gpus_per_client) - 1 / gpus_per_client) > 1e-6:
        raise InputError(
            f"placement.gpus_per_client: a share of a GPU must be 1/n (0.5, 0.25, ...), found {gpus_per_client:g}: Ray would wait for ever"
        )
    if gpus_per_client > 1 and gpus_per_client != int(gpus_per_client):
        raise InputError(f"placement.gpus_per_client: above one it must be a whole number, found {gpus_per_client:g}")
    fits = fitting(available, cpus_per_client, gpus_per_client)
    if clients_per_actor == "auto":
        count = max(1, min(len(weights), fits))
    else:
        count = math.ceil(len(weights) / int(clients_per_actor))
    if count > fits:
        packed = f"; placement.clients_per_actor={math.ceil(len(weights) / fits)} would fit" if fits else ""
        kinds = f"{count * cpus_per_client:g} CPUs" + (f" and {count * gpus_per_client:g} GPUs" if gpus_per_client else "")
        who = "1 actor needs" if count == 1 else f"{count} actors need"
        raise InputError(
            f"placement: {who} {kinds} (cpus_per_client={cpus_per_client:g}, gpus_per_client={gpus_per_client:g}), "
            f"{available.where} has {available.cpus:g} CPUs and {available.gpus:g} GPUs{packed}"
        )
    return Request(groups=balanced(weights, count), cpus=cpus_per_client, gpus=gpus_per_client)


def fitting(available: Available, cpus: float, gpus: float) -> int:
    """How many actors of this size fit. Shares of a GPU do not span two GPUs."""
    by_cpu = math.floor(available.cpus / cpus + 1e-9)
    if not gpus:
        return by_cpu
    by_gpu = math.floor(available.gpus) * round(1 / gpus) if gpus < 1 else math.floor(available.gpus / gpus)
    return min(by_cpu, by_gpu)


def balanced(weights: Mapping[str, float], count: int) -> tuple[tuple[str, ...], ...]:
    """Longest processing time first: each client to the actor with the least to do so far."""
    loads = [0.0] * count
    groups: list[list[str]] = [[] for _ in range(count)]
    for client in sorted(weights, key=lambda c: (-weights[c], c)):
        target = min(range(count), key=lambda i: (loads[i], i))
        groups[target].append(client)
        loads[target] += weights[client]
    return tuple(tuple(sorted(group)) for group in groups if group)
