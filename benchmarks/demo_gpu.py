"""The demo's four runs on a GPU, four clients at a quarter of it each, beside the same runs on the CPU; one of them again in one actor.

    python -m benchmarks.demo_gpu [--runs FOLDER] [--rounds N]      # the runs: on the GPU, then on the CPU (--place and --task for some)
    python -m benchmarks.demo_gpu --compare [--output benchmarks/results/demo_gpu.json]

Says how far apart the two devices are. They add up in different orders, so the frozen model's scores and the first round's losses must agree to
rounding (FROZEN, FIRST). From there tens of rounds of AdamW carry a difference in the last bit on, as they do between two kinds of CPU: the
ends are compared by their means over clients (MEANS), of 47 test patients. The last run again with all its clients in one actor, if it is there,
must have the same hash. The CPU's runs may be made on another machine, from the same data (`data_sha256`).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.demo import CONFIGS, RUNS
from raylora import config as configuration
from raylora import launch
from raylora.cli import guarded
from raylora.cluster import session

FROZEN, FIRST = 1e-5, 1e-3  # of a score; of a client's mean loss, relative: eight steps of AdamW are between
MEANS = {"dice": 0.01, "balanced_accuracy": 0.08, "auc": 0.08}
QUARTERS = ("placement.gpus_per_client=0.25", "placement.clients_per_actor=1")
PLACES: Mapping[str, tuple[str, ...]] = {
    "gpu": ("training.device=cuda", *QUARTERS),
    "cpu": ("training.device=cpu", "placement.clients_per_actor=auto"),
}
AGAIN, TOGETHER = "one_actor", ("training.device=cuda", "placement.gpus_per_client=0.5", "placement.clients_per_actor=4")


def main() -> int:
    """Run, compare, write; 1 if the two places do not agree."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, default=Path("runs/demo_gpu"))
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--place", choices=PLACES, action="append")
    parser.add_argument("--task", choices=("segmentation", "disease"))
    parser.add_argument("--compare", action="store_true")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "demo_gpu.json")
    parser.add_argument("--machine", default="", help="what computed the runs, for the record")
    options = parser.parse_args()
    if not options.compare:
        words = [] if options.rounds is None else [f"training.rounds={options.rounds}"]
        compute(options.runs, options.place or list(PLACES), [run for run in RUNS if options.task is None or options.task in run[0]], words)
        return 0
    found = measure(options.runs) | {"machine": options.machine}
    options.output.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))
    return int(
        found["one_actor_has_the_same_hash"] is False
        or not all(one["within_tolerance"] and one["same_data"] for one in found["runs"].values())
    )


def compute(folder: Path, places: Sequence[str], runs: Sequence[tuple[str, str, tuple[str, ...]]], options: Sequence[str]) -> None:
    """Runs of the demo in some places, and on a GPU its last one again, the clients in one actor."""
    with session.opened(None):
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
    again = folder / f"{'_'.join(RUNS[-1][:2])}_{AGAIN}" / "summary.json"
    same = json.loads(again.read_text())["adapter_sha256"] == runs["gpu"]["adapter_sha256"] if again.exists() else None
    return {
        "runs": found,
        "tolerance": {"frozen": FROZEN, "first_round": FIRST, "means": MEANS},
        "one_actor_has_the_same_hash": same,
        "versions": runs["gpu"]["versions"],
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
    means = {metric: {place: scores[metric]["mean"] for place, scores in final.items()} for metric in MEANS if metric in final["gpu"]}
    rows = pd.concat({place: patients(folder / summary["name"]) for place, summary in runs.items()}, axis=1, join="inner")
    frozen = rows.xs("frozen", level="model_of")
    first = pd.concat({place: losses(folder / summary["name"]) for place, summary in runs.items()}, axis=1)
    distances = {
        "frozen": float((frozen["gpu"] - frozen["cpu"]).abs().max()),
        "first_round": float((first["gpu"] / first["cpu"] - 1).abs().max()),
    }
    return {
        "seconds": {place: round(summary["wall_seconds"], 1) for place, summary in runs.items()},
        "same_data": runs["gpu"]["data_sha256"] == runs["cpu"]["data_sha256"],
        "largest_distance": distances,
        "means": means,
        "within_tolerance": distances["frozen"] <= FROZEN
        and distances["first_round"] <= FIRST
        and all(abs(value["gpu"] - value["cpu"]) <= MEANS[metric] for metric, value in means.items()),
        "torch": {place: summary["versions"]["torch"] for place, summary in runs.items()},
    }


def patients(folder: Path) -> pd.Series:
    """Test Dice or probability by model, client, patient, frame and structure."""
    table = pd.read_parquet(folder / "cases.parquet")
    table = table[(table.split == "test") & table.metric.isin(["dice", "probability"])]
    return table.set_index(["model_of", "data_of", "patient", "frame", "structure"])["value"]


def losses(folder: Path) -> pd.Series:
    """Of the first round, by client."""
    lines = map(json.loads, (folder / "rounds.jsonl").read_text().splitlines())
    return pd.Series({line["client"]: line["loss"] for line in lines if line["round"] == 0 and "loss" in line and line.get("client")})


if __name__ == "__main__":
    sys.exit(guarded(main))
