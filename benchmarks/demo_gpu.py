"""The demo's four runs on a GPU, four clients at a quarter of it each, beside the same runs on the CPU; one of them again in one actor.

    python -m benchmarks.demo_gpu [--runs FOLDER] [--rounds N]      # the runs: on the GPU, then on the CPU (--place and --task for some)
    python -m benchmarks.demo_gpu --compare [--output benchmarks/results/demo_gpu.json]

Says how far scores are apart: per patient and of the mean over clients. The two devices add up in different orders, and 22 or 40 rounds of
AdamW carry a difference in the last bit on; the tolerance is of the means. The same run with all clients in one actor must have the same hash.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.demo import CONFIGS, RUNS
from raylora import config as configuration
from raylora import launch
from raylora.cli import guarded
from raylora.cluster import driver

TOLERANCE = {"dice": 0.01, "balanced_accuracy": 0.03, "auc": 0.01}  # of the mean over clients
QUARTERS = ("placement.gpus_per_client=0.25", "placement.clients_per_actor=1")
PLACES: Mapping[str, tuple[str, ...]] = {
    "gpu": ("training.device=cuda", *QUARTERS),
    "cpu": ("training.device=cpu", "placement.clients_per_actor=auto"),
}
AGAIN, TOGETHER = "one_actor", ("training.device=cuda", "placement.gpus_per_client=0.5", "placement.clients_per_actor=4")


def main() -> None:
    """Run, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, default=Path("runs/demo_gpu"))
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--place", choices=PLACES, action="append")
    parser.add_argument("--task", choices=("segmentation", "disease"))
    parser.add_argument("--compare", action="store_true")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "demo_gpu.json")
    options = parser.parse_args()
    if not options.compare:
        words = [] if options.rounds is None else [f"training.rounds={options.rounds}"]
        compute(options.runs, options.place or list(PLACES), [run for run in RUNS if options.task is None or options.task in run[0]], words)
        return
    found = measure(options.runs)
    options.output.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


def compute(folder: Path, places: Sequence[str], runs: Sequence[tuple[str, str, tuple[str, ...]]], options: Sequence[str]) -> None:
    """Runs of the demo in some places, and on a GPU its last one again, the clients in one actor."""
    with driver.session(None):
        for place in places:
            for name, strategy, own in runs:
                run(folder, name, strategy, place, [*own, *PLACES[place], *options])
            if place == "gpu" and RUNS[-1] in runs:
                name, strategy, own = RUNS[-1]
                run(folder, name, strategy, AGAIN, [*own, *TOGETHER, *options])


def measure(folder: Path) -> dict[str, Any]:
    """What the runs' folders say."""
    found = {}
    for name, strategy, _ in RUNS:
        runs = {place: summary_of(folder, name, strategy, place) for place in PLACES}
        found[f"{name}_{strategy}"] = compared(folder, runs)
    again = summary_of(folder, *RUNS[-1][:2], AGAIN)
    return {
        "runs": found,
        "same_data": runs["gpu"]["data_sha256"] == runs["cpu"]["data_sha256"],
        "one_actor_has_the_same_hash": again["adapter_sha256"] == runs["gpu"]["adapter_sha256"],
        "versions": runs["gpu"]["versions"] | {"device": _device()},
    }


def summary_of(folder: Path, name: str, strategy: str, place: str) -> dict[str, Any]:
    return json.loads((folder / f"{name}_{strategy}_{place}" / "summary.json").read_text())


def run(folder: Path, name: str, strategy: str, place: str, words: Sequence[str]) -> None:
    """One run, into its folder."""
    words = [f"name={name}_{strategy}_{place}", f"strategy.name={strategy}", "tracking.uri=null", *words]
    config = configuration.load(CONFIGS / f"{name}.yaml", words)
    launch.run(config, (folder / config.name).resolve())
    print(config.name, flush=True)


def compared(folder: Path, runs: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Seconds, scores, and how far apart they are."""
    final = {place: summary["final"] for place, summary in runs.items()}
    metrics = [metric for metric in TOLERANCE if metric in final["gpu"]]
    means = {metric: {place: scores[metric]["mean"] for place, scores in final.items()} for metric in metrics}
    rows = {place: patients(folder / summary["name"]) for place, summary in runs.items()}
    both = rows["gpu"].to_frame("gpu").join(rows["cpu"].to_frame("cpu"), how="inner")
    distance = (both["gpu"] - both["cpu"]).abs()
    return {
        "seconds": {place: round(summary["wall_seconds"], 1) for place, summary in runs.items()},
        "means": means,
        "within_tolerance": all(abs(value["gpu"] - value["cpu"]) <= TOLERANCE[metric] for metric, value in means.items()),
        "patients": {"rows": len(both), "of": len(rows["cpu"]), "mean_distance": float(distance.mean()), "largest": float(distance.max())},
    }


def patients(folder: Path) -> pd.Series:
    """Test Dice or probability by model, client, patient, frame and structure."""
    table = pd.read_parquet(folder / "cases.parquet")
    table = table[(table.split == "test") & table.metric.isin(["dice", "probability"])]
    return table.set_index(["model_of", "data_of", "patient", "frame", "structure"])["value"]


def _device() -> str:
    import torch

    return f"{torch.cuda.get_device_name()}, {os.cpu_count()} CPU cores" if torch.cuda.is_available() else "no GPU"


if __name__ == "__main__":
    sys.exit(guarded(main))
