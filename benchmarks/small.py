"""The smallest federation that is one, for campaigns that need many runs: a tiny ViT, four vendors, a second a run."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raylora import config as configuration
from raylora import experiment, planning
from raylora.config import Config
from raylora.federation.build import build_host
from raylora.federation.executor import InProcess

DATA: Mapping[str, Any] = {
    "dataset": "phantom",
    "phantom": {"patients": 48},
    "fractions": [0.5, 0.125, 0.125, 0.25],
    "spacing_mm": [6.0, 6.0, 10.0],
    "size": [16, 16, 4],
}
KINDS: Mapping[str, Mapping[str, Any]] = {
    "stateless": {"strategy": {"name": "fedit"}},
    "stateful": {"strategy": {"name": "fedadam"}},
    "personalised": {"strategy": {"name": "med_duallora", "head": "private"}},
    "base-delta": {"strategy": {"name": "rate_my_lora", "temperature": 0.1}},
    "stacked": {"strategy": {"name": "fedit"}, "training": {"stack": 2}},
}
"""What a strategy may have to keep: nothing, server moments, private adapters, folds into the base; and clients that share a pass."""


def config(kind: str, rounds: int, data: Mapping[str, Any] = DATA, **more: Any) -> Config:
    """A run of one kind; `more` are sections to lay over it."""
    own = KINDS[kind]
    return configuration.from_dict(
        {
            "name": kind,
            "task": "disease",
            "data": dict(data),
            "model": {"name": "vit", "sizes": {"patch": [8, 8, 2], "width": 16, "depth": 2, "heads": 2}},
            "lora": {"rank": 1, "alpha": 2.0},
            "strategy": own["strategy"],
            "training": {"rounds": rounds, "local_steps": 2, "batch_size": 3, "lr": 0.02, **own.get("training", {})},
            "placement": {"clients_per_actor": 2},
            "evaluation": {"bootstrap": 50, "overlays": 0},
            "tracking": {"uri": None},
            **more,
        }
    )


def in_process(plan: planning.Plan) -> InProcess:
    return InProcess(build_host(plan.spec, plan.weights))


def run_here(settings: Config, out: Path, *, resume: bool = False) -> dict[str, Any]:
    """The summary of a run in this process, without Ray."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.yaml").write_text(configuration.dump(settings))
    *_, last = experiment.run_experiment(planning.make_plan(settings), out, in_process, resume=resume)
    return dict(last["summary"])


def quick_to_notice() -> None:
    """Ray takes half a minute to call a node dead; a campaign has no such time. To be called before a cluster is started."""
    for name, value in {"period_ms": "500", "failure_threshold": "4", "timeout_ms": "20000", "initial_delay_ms": "1000"}.items():
        os.environ.setdefault(f"RAY_health_check_{name}", value)
