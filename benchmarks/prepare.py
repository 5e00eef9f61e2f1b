"""`raylora data prepare` on 200 phantom studies: studies a minute, peak memory, and what a second run and a changed option cost.

    python -m benchmarks.prepare [--patients 200] [--output benchmarks/results/prepare.json]

Every step is the command as a user types it, in a process of its own, Ray's start and end included; memory is the sum of the proportional
set sizes (PSS) of that process and of all it started, sampled twice a second. Expected on two cores: some hundreds of studies a minute, below
2 GiB, a second run below 3 s, and a new crop size as long as the first run (it redoes every shard; the raw files are the same).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.processes import family, pss
from raylora.data.phantom import write_cohort


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--patients", type=int, default=200)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "prepare.json")
    options = parser.parse_args()
    result = measure(options.patients)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


def measure(patients: int) -> dict:
    """The steps one after the other on one folder."""
    with tempfile.TemporaryDirectory(prefix="raylora-prepare-") as folder:
        source, out = Path(folder) / "phantoms", Path(folder) / "prepared"
        write_cohort(source, layout="mnms", patients=patients, seed=1)
        prepare = ["data", "prepare", "mnms", str(source), str(out), "--spacing", "1.5", "1.5", "10"]
        steps = {
            "first": command([*prepare, "--size", "128", "128", "16"]),
            "again": command([*prepare, "--size", "128", "128", "16"]),
            "one_study_removed": _without_one(out, [*prepare, "--size", "128", "128", "16"]),
            "other_size": command([*prepare, "--size", "96", "96", "16"]),
        }
    first = steps["first"]["seconds"]
    return {
        "patients": patients,
        "studies_a_minute": round(60 * patients / first),
        "steps": steps,
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "cpus": len(os.sched_getaffinity(0)),
            "python": platform.python_version(),
        },
    }


def _without_one(out: Path, words: list[str]) -> dict[str, float]:
    """One shard deleted: only that study is done again."""
    min(out.glob("**/*.arrow")).unlink()
    return command(words)


def command(words: list[str]) -> dict[str, float]:
    """Seconds and peak memory of `raylora WORDS`."""
    began, peak = time.perf_counter(), 0
    process = subprocess.Popen([sys.executable, "-m", "raylora.cli", *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while process.poll() is None:
        peak = max(peak, sum(map(pss, family(process.pid))))
        time.sleep(0.05 if time.perf_counter() - began < 3 else 0.5)
    if process.returncode:
        raise SystemExit(f"raylora {' '.join(words)} ended with {process.returncode}: {process.stderr.read() if process.stderr else ''}")
    return {"seconds": round(time.perf_counter() - began, 2), "peak_gib": round(peak / 2**30, 2)}


if __name__ == "__main__":
    main()
