"""What a sweep costs beside its trials: the same trivial experiments as trials of a sweep and called one after the other, on one warm Ray.

    python -m benchmarks.sweep_overhead [--trials 100]        about 10 s a trial on two cores; writes benchmarks/results/sweep_overhead.json

One trial at a time, so that nothing is gained by running side by side; both ways write run folders with reports and are followed by MLflow
(a database of their own). What to expect: a sweep's trial costs less than a run, since it finds its driver's process warm.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import yaml

from raylora import launch, launch_sweep
from raylora.cli import guarded
from raylora.cluster import session
from raylora.provenance import versions
from raylora.sweep import space

RESULT = Path(__file__).resolve().parent / "results" / "sweep_overhead.json"
TRIVIAL: dict[str, Any] = {
    "name": "trivial",
    "data": {"dataset": "phantom", "phantom": {"patients": 24}, "spacing_mm": [6.0, 6.0, 10.0], "size": [16, 16, 4]},
    "model": {"name": "unet", "sizes": {"channels": [4, 6, 8], "kernels": [[3, 3, 1]] * 3, "strides": [[1, 1, 1], [2, 2, 1], [2, 2, 1]]}},
    "lora": {"rank": 2},
    "training": {"rounds": 2, "local_steps": 1, "batch_size": 2},
    "evaluation": {"bootstrap": 50, "overlays": 0},
    "placement": {"clients_per_actor": "auto"},
}


def measure(trials: int, folder: Path) -> dict[str, Any]:
    """Seconds of both ways, and per trial."""
    (folder / "base.yaml").write_text(yaml.safe_dump({**TRIVIAL, "tracking": {"uri": f"sqlite:///{folder / 'mlflow.db'}"}}))
    sweep = {
        "name": "trivial",
        "base": "base.yaml",
        "space": {"lora.rank": {"grid": [2]}},
        "seeds": list(range(trials)),
        "limits": {"concurrent": 1},
    }
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump(sweep))
    settings = space.load(path, ["placement.clients_per_actor=4"])  # one actor: the same places both ways
    with session.opened(None, environments=True):
        warm = settings.config({"lora.rank": 2}, trials, trials)
        launch.run(warm, folder / "warm")  # data, database, Ray's first workers
        began = time.perf_counter()
        for trial in space.trials(settings):
            launch.run(settings.config(trial.values, trial.seed, trial.number), folder / "runs" / trial.folder)
        runs_s = time.perf_counter() - began
        began = time.perf_counter()
        _, found = launch_sweep.sweep(path, ["placement.clients_per_actor=4"], folder / "sweep")
        sweep_s = time.perf_counter() - began
    same = all(
        row["adapter_sha256"] == json.loads((folder / "runs" / f"{row['number']:03d}" / "summary.json").read_text())["adapter_sha256"]
        for row in found["trials"]
    )
    if not same or found["counts"]["finished"] != trials:
        raise SystemExit("the sweep's trials are not the runs: nothing was measured")
    return {
        "command": "python -m benchmarks.sweep_overhead",
        "trials": trials,
        "seconds_of_runs": round(runs_s, 1),
        "seconds_of_sweep": round(sweep_s, 1),
        "more_seconds_a_trial": round((sweep_s - runs_s) / trials, 3),
        "versions": versions(),
        "cpus": len(os.sched_getaffinity(0)),
    }


def main() -> None:
    """Measure and write down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--output", type=Path, default=RESULT)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="raylora-") as folder:
        found = measure(given.trials, Path(folder))
    given.output.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found))


if __name__ == "__main__":
    sys.exit(guarded(main))
