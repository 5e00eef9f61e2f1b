"""Which clients take part in a round."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from raylora.core.errors import InputError
from raylora.core.seeds import generator
from raylora.core.types import Client

KINDS = ("all", "uniform", "size", "poisson")


def cohort(clients: Sequence[Client], kind: str, fraction: float, seed: int, round: int) -> tuple[Client, ...]:
    """The clients of a round, by id: all of them; ceil(fraction * N) drawn without replacement, uniformly or in turn with probabilities
    proportional to their training patients; or each by itself with probability `fraction` ("poisson", what privacy accounting assumes;
    nobody may come). The draw depends on (seed, round) and the ids, not on the order given.

    Raises InputError for an unknown kind, a fraction outside (0, 1], or more places than clients with patients.
    """
    if kind not in KINDS:
        raise InputError(f"sampling.kind: expected {', '.join(KINDS)}, found {kind}")
    if not 0 < fraction <= 1:
        raise InputError(f"sampling.fraction: expected a share in (0, 1], found {fraction}")
    ordered = sorted(clients, key=lambda client: client.id)
    if kind == "all":
        return tuple(ordered)
    draw = generator(seed, "cohort", round)
    if kind == "poisson":
        return tuple(client for client, x in zip(ordered, draw.random(len(ordered)), strict=True) if x < fraction)
    count = math.ceil(fraction * len(ordered) - 1e-9)
    sizes = np.array([client.num_examples for client in ordered], dtype=np.float64)
    if kind == "size" and np.count_nonzero(sizes) < count:
        raise InputError(f"sampling.kind size: expected {count} clients with training patients, found {np.count_nonzero(sizes)}")
    chances = sizes / sizes.sum() if kind == "size" else None
    chosen = draw.choice(len(ordered), size=count, replace=False, p=chances)
    return tuple(ordered[k] for k in sorted(chosen))
