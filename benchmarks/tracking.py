"""A sweep of 1,000 trials of a trivial experiment told to one SQLite store, and read back.

    python -m benchmarks.tracking [--trials 1000] [--clients 4] [--rounds 3] [--output benchmarks/results/tracking.json]

Nothing is trained: configurations, rounds, summaries and artifacts are made up with the shapes of real ones, so that what is measured is
MLflow and the thread that writes to it. Told as fast as the store takes it. Reported: seconds a trial, the longest that anybody who tells
was held up, the size of the store, and whether every run, parameter and last metric that is read back is the one that was told.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from raylora import config as configuration
from raylora.core.seeds import generator
from raylora.tracking.mlflow import SweepTracker, final_metrics, texts

AHEAD = 4  # trials told before the store has begun them: as many as a sweep would run at once
METRICS = ("dice", "dice_lv", "dice_myo", "dice_rv", "hd95_mm", "lv_ef_error")


def main() -> int:
    """Measure, print, write; 1 if what was read back is not what was told."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "tracking.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="raylora-tracking-") as folder:
        result = measure(Path(folder), options.trials, options.clients, options.rounds)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    return int(bool(result["differing"] or result["missing"]))


def measure(folder: Path, trials: int, clients: int, rounds: int) -> dict[str, Any]:
    """Tell a sweep to a new store in `folder`, and read it back."""
    uri, began, cpu = f"sqlite:///{folder / 'mlflow.db'}", time.perf_counter(), time.process_time()
    tracker = SweepTracker(uri, "rehearsal", "thousand", {"trials": trials}, {}, 16)
    while tracker.ids()[0] is None:  # the tables are made once
        time.sleep(0.05)
    ready, held_up, summaries = time.perf_counter(), 0.0, {}
    for number in range(trials):
        while len(tracker.ids()[1]) < number - AHEAD:
            time.sleep(0.005)
        config, lines, summary = trial(number, clients, rounds)
        out = folder / "trials" / f"{number:03d}"
        write_folder(out, config, lines, summary)
        told = time.perf_counter()
        tracker.trial(number, out.name, config, {"strategy": "fedit", "seed": str(number)})
        for t in range(rounds):
            tracker.rounds(number, [line for line in lines if line["round"] == t])
        tracker.finish(number, out, summary)
        held_up = max(held_up, time.perf_counter() - told)
        summaries[number] = (config, summary)
    (folder / "sweep.json").write_text(json.dumps({"name": "thousand"}))
    tracker.end("FINISHED", folder)
    missing = tracker.close()
    ended = time.perf_counter()
    parent, ids = tracker.ids()
    differing, found = read_back(uri, str(parent), ids, summaries, clients)
    return {
        "trials": trials,
        "clients": clients,
        "rounds": rounds,
        "runs": found,
        "missing": missing,
        "differing": differing,
        "seconds_first_run": ready - began,
        "seconds": ended - ready,
        "seconds_a_trial": (ended - ready) / trials,
        "cpu_seconds_a_trial": (time.process_time() - cpu) / trials,
        "longest_call_seconds": held_up,
        "seconds_to_read_back": time.perf_counter() - ended,
        "store_mb": (folder / "mlflow.db").stat().st_size / 1e6,
        "machine": {"processor": platform.processor() or platform.machine(), "cpus": len(os.sched_getaffinity(0)), "python": platform.python_version()},
    }  # fmt: skip


def trial(number: int, clients: int, rounds: int) -> tuple[dict[str, Any], list[dict[str, Any]], dict[str, Any]]:
    """A configuration, its `rounds.jsonl` and its summary, made up."""
    names = [f"site{i}" for i in range(clients)]
    rng = generator(number, "a made-up trial")
    values = {"seed": number, "lora": {"rank": 1 + number % 16}, "training": {"rounds": rounds, "local_steps": 1}}
    config = configuration.from_dict(values).as_dict()
    lines: list[dict[str, Any]] = []
    for t in range(rounds):
        for client in names:
            validation = {"dice": float(rng.random())}
            beside = {"loss": float(rng.random()), "validation": validation}
            lines.append({"kind": "client", "round": t, "client": client, "seconds": 0.1, "bytes_up": 1000, "bytes_down": 2000, **beside})
        total = {"bytes_up": 1000 * clients, "bytes_down": 2000 * clients, "validation": {"dice": float(rng.random())}}
        lines.append({"kind": "round", "round": t, "seconds": 0.4, **total})
    final = {}
    for metric in METRICS:
        own = rng.random(clients)
        mean = float(np.mean(own))
        block = {"mean": mean, "pooled": mean, "frozen": 0.1, "n": 5 * clients, "ci95": [mean - 0.1, mean + 0.1]}
        final[metric] = {**block, "per_client": dict(zip(names, own.tolist(), strict=True))}
    summary = {
        "schema": 1, "status": "finished", "name": f"t{number}", "task": "segmentation", "strategy": "fedit", "seed": number,
        "rounds": rounds, "clients": names, "final": final, "bytes_up": 1000 * clients * rounds, "bytes_down": 2000 * clients * rounds,
        "wall_seconds": 0.4 * rounds, "virtual_seconds": None, "mlflow": None,
    }  # fmt: skip
    return config, lines, summary


def write_folder(folder: Path, config: Mapping[str, Any], lines: list[dict[str, Any]], summary: Mapping[str, Any]) -> None:
    """A run folder with one small adapter."""
    (folder / "adapters" / "global").mkdir(parents=True)
    (folder / "adapters" / "global" / "adapter_model.safetensors").write_bytes(b"\0" * 4096)
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    (folder / "rounds.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "summary.json").write_text(json.dumps(summary))


def read_back(uri: str, parent: str, ids: Mapping[int, str], told: Mapping[int, tuple[Any, Any]], clients: int) -> tuple[list[str], int]:
    """What differs between what was told and what MLflow's client API says, and how many runs there are."""
    from mlflow import MlflowClient

    client, differing, found, token = MlflowClient(uri), [], {}, None
    experiment = client.get_run(parent).info.experiment_id
    while True:
        page = client.search_runs([experiment], page_token=token)
        found |= {run.info.run_id: run for run in page}
        token = page.token
        if not token:
            break
    of_trial: dict[str, list[Any]] = {}
    for run in found.values():
        of_trial.setdefault(run.data.tags.get("mlflow.parentRunId", ""), []).append(run)
    if len(of_trial.get(parent, ())) != len(told) or len(found) != 1 + len(told) * (1 + clients):
        differing.append(f"{len(found)} runs, {len(of_trial.get(parent, ()))} of them trials")
    for number, (config, summary) in told.items():
        run = found[ids[number]]
        wanted = {key: value for key, value in final_metrics(summary).items() if value is not None}
        last = {key: run.data.metrics.get(key, math.nan) for key in wanted}
        children = {each.data.tags["client"]: each for each in of_trial.get(ids[number], ())}
        own = {c: {m: block["per_client"][c] for m, block in summary["final"].items()} for c in summary["clients"]}
        theirs = {c: {m: each.data.metrics.get(f"final/{m}") for m in METRICS} for c, each in children.items()}
        if run.data.params != texts(config) or last != wanted or own != theirs or run.info.status != "FINISHED":
            differing.append(f"trial {number}")
    return differing, len(found)


if __name__ == "__main__":
    sys.exit(main())
