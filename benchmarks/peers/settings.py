"""A workload as a raylora experiment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.peers.workloads import SCALING, SEED, WORKLOADS
from raylora import config as configuration
from raylora.config import Config
from raylora.core.values import override

SPACING = (1.5, 1.5, 10.0)


def client_id(client: int) -> str:
    return f"c{client:04d}"


def config(path: Path, workload: str, rounds: int, overrides: tuple[str, ...] = ()) -> Config:
    """The workload as a raylora experiment: disease detection from ED and ES, a client a centre, FedIT, no validation, no MLflow."""
    work = WORKLOADS[workload]
    values: dict[str, Any] = {
        "name": f"peers-{workload}",
        "task": "disease",
        "seed": SEED,
        "data": {
            "dataset": "acdc",
            "root": str(path / "prepared"),
            "split": "official",
            "fractions": [1.0, 1e-12, 0.0, 1.0],  # all training patients train; raylora asks for a test patient a client
            "spacing_mm": list(SPACING),
            "size": list(work.image),
        },
        "clients": {"by": "centre"},
        "model": {
            "name": "vit",
            "size": work.size,
            "sizes": {"patch": list(work.patch), "width": work.width, "depth": work.depth, "heads": work.heads},
        },
        "lora": {"rank": work.rank, "alpha": SCALING * work.rank, "blocks": work.adapted},
        "strategy": {"name": "fedit"},
        "training": {"rounds": rounds, "local_epochs": 1, "batch_size": work.batch, "lr": work.rate},
        "evaluation": {"every": 0, "overlays": 0},
        "tracking": {"uri": None},
    }
    return configuration.from_dict(override(values, overrides))
