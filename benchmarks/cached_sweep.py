"""What a sweep saves whose trials share the features of the frozen prefix: twelve trials in one sweep, beside the same twelve as `raylora run`
commands without the cache.

    python -m benchmarks.cached_sweep         20 minutes on two cores; writes benchmarks/results/cached_sweep.json

Disease detection on phantoms by a ViT of random weights at the size of the peers' workload W3: LoRA in the last two of twelve blocks. Both ways
are commands as a user types them, with all that they start, score and write; the data are prepared before. The sweeps (three, each with an
empty cache of its own) stand between the runs, so that what else the machine does meets both. One trial at a time.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import yaml

from raylora.cli import guarded
from raylora.core.errors import RunError
from raylora.provenance import versions

RESULT = Path(__file__).resolve().parent / "results" / "cached_sweep.json"
REPEATS = 3
BASE: dict[str, Any] = {
    "name": "shared",
    "task": "disease",
    "data": {"dataset": "phantom", "phantom": {"patients": 48}, "spacing_mm": [2.0, 2.0, 10.0], "size": [96, 96, 16]},
    "model": {"name": "vit", "size": "w2", "sizes": {"patch": [16, 16, 2], "width": 384, "depth": 12, "heads": 6}},
    "lora": {"rank": 4, "blocks": 2},
    "training": {"rounds": 6, "local_epochs": 1, "batch_size": 4},
    "evaluation": {"every": 3, "bootstrap": 200, "overlays": 0},
    "placement": {"clients_per_actor": 2},
    "tracking": {"uri": None},
}
SPACE = {"lora.rank": {"grid": [2, 4, 8, 16]}, "training.lr": {"grid": [1e-3, 3e-3, 1e-2]}}
SMALL: dict[str, Any] = {
    "clients": {"by": "iid", "count": 2},
    "data": {
        **BASE["data"],
        "fractions": [0.5, 0.25, 0, 0.25],
        "phantom": {"patients": 16},
        "size": [16, 16, 4],
        "spacing_mm": [8.0, 8.0, 10.0],
    },
    "model": {"name": "vit", "size": "w1", "sizes": {"patch": [8, 8, 2], "width": 24, "depth": 3, "heads": 2}},
    "training": {"rounds": 1, "local_steps": 1, "batch_size": 4},
    "placement": {"clients_per_actor": 4},
}


def raylora(*words: object) -> float:
    """Seconds that a command took. Raises RunError with its last words if it failed."""
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "raylora", *map(str, words)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RunError(f"raylora {' '.join(map(str, words))}: {done.stderr.strip().splitlines()[-1:]}")
    return time.perf_counter() - began


def hashes(folder: Path) -> dict[str, str]:
    """What every trial's adapters came to."""
    return {path.parent.name: json.loads(path.read_text())["adapter_sha256"] for path in sorted(folder.glob("**/summary.json"))}


def check(trials: int, cached: dict[str, str], without: dict[str, str], plain: dict[str, str]) -> None:
    """Raises RunError unless a sweep has made all its trials, and without the cache the very adapters of the runs."""
    if len(cached) != trials or without != plain:
        raise RunError("the sweep's trials are not the runs: nothing was measured")


def measure(folder: Path, small: bool) -> dict[str, Any]:
    """Seconds of the runs, of the sweeps, and of one sweep without the cache."""
    space = {key: {"grid": values["grid"][:1]} for key, values in SPACE.items()} if small else SPACE
    grid = [(rank, lr) for rank in space["lora.rank"]["grid"] for lr in space["training.lr"]["grid"]]
    (folder / "base.yaml").write_text(yaml.safe_dump({**BASE, **(SMALL if small else {})}))
    sweep = {"name": "shared", "base": "base.yaml", "space": space, "objective": {"metric": "likelihood"}, "limits": {"concurrent": 1}}
    (folder / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    off, repeats = ["training.cache=off"], 1 if small else REPEATS

    def prepare(cache: Path) -> str:
        """A cache with the phantoms in it and nothing else."""
        raylora("run", folder / "base.yaml", "training.rounds=1", *off, f"data.cache={cache}", "--output", folder / f"first-{cache.name}")
        return f"data.cache={cache}"

    runs, sweeps, plain = [], [], prepare(folder / "plain-cache")
    for repeat in range(repeats):
        for number in range(len(grid))[repeat::repeats]:
            rank, lr = grid[number]
            values = (f"lora.rank={rank}", f"training.lr={lr}", *off, plain)
            runs.append(raylora("run", folder / "base.yaml", *values, "--output", folder / "plain" / f"{number:03d}"))
        shared = prepare(folder / f"cache-{repeat}")
        sweeps.append(raylora("sweep", folder / "sweep.yaml", shared, "--output", folder / f"sweep-{repeat}"))
    without = raylora("sweep", folder / "sweep.yaml", *off, plain, "--output", folder / "without")
    for repeat in range(repeats):
        check(len(grid), hashes(folder / f"sweep-{repeat}"), hashes(folder / "without"), hashes(folder / "plain"))
    return {
        "command": "python -m benchmarks.cached_sweep",
        "trials": len(grid),
        "seconds_of_runs": round(sum(runs), 1),
        "seconds_of_sweeps": [round(seconds, 1) for seconds in sweeps],
        "seconds_of_a_sweep_without_cache": round(without, 1),
        "part": round(statistics.median(sweeps) / sum(runs), 3),
        "versions": versions(),
        "cpus": len(os.sched_getaffinity(0)),
    }


def main() -> None:
    """Measure and write down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="one trial of a tiny model, for the tests")
    parser.add_argument("--output", type=Path, default=RESULT)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="raylora-") as folder:
        found = measure(Path(folder), given.small)
    given.output.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found))


if __name__ == "__main__":
    sys.exit(guarded(main))
