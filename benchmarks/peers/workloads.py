"""The workloads that every system is given, the folder that they are in, and what a system says of its rounds. Needs numpy only.

Apart from the work itself, which needs torch: raylora's command never loads it.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.processes import cpu_seconds

SCALING, CHANNELS, CLASSES, SEED = 2.0, 2, 5, 0
IDLE_LOSS = 1.0  # said by clients that do not train
IDLE_MB = 1.5  # what raylora's exchange; in the other systems it is what the network below trains


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What a client does in a round, and how many clients and rounds there are unless asked otherwise."""

    name: str
    size: str  # raylora's name of the model
    image: tuple[int, int, int]
    patch: tuple[int, int, int]
    width: int
    depth: int
    heads: int
    adapted: int  # the last blocks, those with LoRA
    samples: int  # of a client
    batch: int
    clients: int
    rounds: int
    rank: int = 4
    rate: float = 1e-3  # of AdamW
    distinct: int | None = None  # volumes on disk, which clients share; None: each its own
    watched: int = 0  # clients' rounds in the run whose memory is looked at: a heap spreads with each, however few the clients
    idle: bool = False  # clients return what they are sent, at once

    @property
    def tokens(self) -> int:
        return 1 + math.prod(n // p for n, p in zip(self.image, self.patch, strict=True))

    @property
    def steps(self) -> int:
        """Of one client in one round."""
        return 0 if self.idle else -(-self.samples // self.batch)

    def flops(self) -> float:
        """Of one sample's step, two a multiply-add: the forward pass, and back through what lies behind the first adapted layer.

        Frozen weights need no gradient, so a block's way back costs what its way forward does (its attention twice that). What is neither
        a matrix product nor of LoRA's rank is not counted.
        """
        if self.idle:
            return 0.0
        n, w = self.tokens, self.width
        products, attention = 24 * n * w * w, 4 * n * n * w
        embedding = 2 * (n - 1) * CHANNELS * math.prod(self.patch) * w
        forward = embedding + self.depth * (products + attention)
        back = self.adapted * (products + 2 * attention) - 6 * n * w * w  # the first qkv's input needs no gradient
        return float(forward + back)


SMALL = {"size": "w1", "image": (64, 64, 8), "patch": (16, 16, 4), "width": 192, "depth": 6, "heads": 6, "adapted": 6, "distinct": 128}
LARGE = {"size": "w2", "image": (96, 96, 16), "patch": (16, 16, 2), "width": 384, "depth": 12, "heads": 6}
TINY = {"size": "w1", "image": (16, 16, 4), "patch": (16, 16, 4), "width": 384, "depth": 3, "heads": 6, "adapted": 3, "rank": 54}
WORKLOADS: Mapping[str, Workload] = {
    work.name: work
    for work in (
        Workload(name="idle", **TINY, samples=2, batch=2, clients=8, rounds=60, idle=True),  # 1.5 MB to and fro: what a round itself costs
        Workload(name="W0", **TINY, rate=1e-5, samples=2, batch=2, clients=8, rounds=20),  # the same with hardly any work
        Workload(name="W1", **SMALL, samples=16, batch=8, clients=64, rounds=5, watched=512),
        Workload(name="W1s", **SMALL, samples=4, batch=2, clients=64, rounds=5),
        Workload(name="W2", **LARGE, adapted=12, samples=16, batch=4, clients=8, rounds=3),
        Workload(name="W3", **LARGE, adapted=2, samples=16, batch=4, clients=8, rounds=10),
    )
}


# ---- the data, and what a system says


class Folder:
    """What `prepare` wrote: the volumes (memory-mapped), every client's order of samples in every round, the weights at the start."""

    def __init__(self, path: Path) -> None:
        self.path = path
        about: dict[str, Any] = json.loads((path / "about.json").read_text())
        self.work = WORKLOADS[about["workload"]]
        self.clients: int = about["clients"]
        self.rounds: int = about["rounds"]
        self.workers: int = about["workers"]  # processes or threads that compute at once
        self.volumes = np.load(path / "volumes.npy", mmap_mode="r")  # (distinct, 2, x, y, z) float32
        self.order = np.load(path / "order.npy")  # (rounds, clients, samples)

    def samples(self, round: int, client: int) -> tuple[np.ndarray, np.ndarray]:
        """A client's images (n, 2, x, y, z) and labels (n,) in the order of a round."""
        order = self.order[round, client]
        return self.volumes[volume_of(self.work, client, order, len(self.volumes))], (order % 2).astype(np.int64)


def volume_of(work: Workload, client: int, sample: Any, distinct: int) -> Any:
    """Which of the volumes on disk a client's sample is."""
    return (client * work.samples + sample) % distinct


class Report:
    """One JSON line a round: when it ended, the CPU time so far, every client's mean loss, the steps that were made.

    Without a step the CPU time is left out (null): to read it takes milliseconds, which are much of an idle round.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def round(self, losses: Sequence[float], steps: int) -> None:
        line = {"time": time.time(), "cpu": cpu_seconds(os.getpid()) if steps else None, "losses": list(losses), "steps": steps}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
