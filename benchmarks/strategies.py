"""Every strategy on the multi-vendor phantoms, both tasks: the same cohort, base weights, rank budget and local steps for all.

    python -m benchmarks.strategies                    # everything; goes on where it was left; about 40 minutes on two quiet cores
    python -m benchmarks.strategies --small --only fedit local --task disease

One file of configs/strategies/ a row, laid over configs/strategies/tasks/<task>.yaml. For each row three learning rates are tried on seed 0
and one is chosen on validation patients; then seeds 0, 1, 2 run to their end, and only these are scored on test patients. Run folders stay
in runs/strategies/. Writes benchmarks/results/strategies/<task>.{json,csv,md}, docs/strategies.png and the table in docs/strategies.md.
What to expect: that training alone is hard to beat in-client on these phantoms; most federated methods within each other's A/A limit.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import statistics
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # one thread a run: runs go side by side

from raylora import config as configuration
from raylora import experiment, planning
from raylora.cli import guarded
from raylora.config import Config
from raylora.core.errors import InputError, RunError
from raylora.federation.build import build_host
from raylora.federation.executor import InProcess
from raylora.models.peft import hash_of
from raylora.strategies import STRATEGIES

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ROOT / "configs" / "strategies"
TASKS = ("segmentation", "disease")
RATES = (0.3, 1.0, 3.0)  # times the task's training.lr
CENTRES = {"fedavg_full": 0.1, "scaffold": 30.0}  # where every weight is trained rates are smaller, for SGD they are larger
SEEDS = (0, 1, 2)
CHOSEN_BY = {"segmentation": "dice", "disease": "likelihood"}  # on validation patients; the second moves where an accuracy of few does not
SMALL = ("data.phantom.patients=32", "training.rounds=1", "training.local_steps=2", "evaluation.bootstrap=50")


@dataclass(frozen=True, kw_only=True)
class Study:
    """One row of one task's table: its rates, then its seeds."""

    task: str
    entry: str
    folder: Path
    data: str  # hash of the prepared studies and the base weights
    rates: tuple[float, ...]
    seeds: tuple[int, ...]
    overrides: tuple[str, ...] = ()

    def config(self, rate: float, seed: int) -> Config:
        """The configuration of one run. `rate` is a factor on the task's learning rate."""
        task = [f"base=tasks/{self.task}.yaml", "tracking.uri=null", *self.overrides]
        centre = configuration.load(CONFIGS / f"{self.entry}.yaml", task).training.lr
        lr = float(f"{centre * CENTRES.get(self.entry, 1.0) * rate:.3g}")
        return configuration.load(CONFIGS / f"{self.entry}.yaml", [*task, f"training.lr={lr!r}", f"seed={seed}"])

    def run_folder(self, rate: float, seed: int) -> Path:
        return self.folder / self.task / self.entry / f"rate_{rate:g}_seed_{seed}"


def entries() -> list[str]:
    """The rows, in the registry's order; variants of a strategy behind it."""
    order = list(STRATEGIES)
    names = [path.stem for path in CONFIGS.glob("*.yaml")]
    return sorted(names, key=lambda name: (order.index(configuration.load(CONFIGS / f"{name}.yaml").strategy.name), name))


def run(config: Config, folder: Path, data: str, *, test: bool) -> None:
    """Train, and score the test patients if `test`; what is done already is not done again. A run of other settings makes way."""
    stamp = json.dumps({"config": config.sha256(), "data": data})
    if folder.is_dir() and (not (folder / "stamp.json").is_file() or (folder / "stamp.json").read_text() != stamp):
        shutil.rmtree(folder)
    if (folder / "summary.json").is_file() or (folder / "failed.txt").is_file() or (not test and trained(config, folder)):
        return
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "stamp.json").write_text(stamp)
    (folder / "config.yaml").write_text(configuration.dump(config))
    began = time.process_time()  # what else the machine does is not in it
    plan = planning.make_plan(config)
    events = experiment.run_experiment(plan, folder, lambda p: InProcess(build_host(p.spec, p.weights)), resume=True)
    try:
        for event in events:
            if event["event"] == "phase" and not test:
                events.close()  # before the test patients are touched
                break
    except RunError as error:  # a rate that is too large
        (folder / "failed.txt").write_text(str(error))
    (folder / "cpu_seconds.json").write_text(json.dumps(cpu_seconds(folder) + time.process_time() - began))


def cpu_seconds(folder: Path) -> float:
    """What a run has cost so far, in one thread; over all its starts."""
    path = folder / "cpu_seconds.json"
    return float(json.loads(path.read_text())) if path.is_file() else 0.0


def trained(config: Config, folder: Path) -> bool:
    """Whether all rounds are done."""
    lines = (folder / "rounds.jsonl").read_text().splitlines() if (folder / "rounds.jsonl").is_file() else []
    return bool(lines) and json.loads(lines[-1])["round"] == config.training.rounds - 1


def validation(task: str, folder: Path) -> float | None:
    """The mean over clients on validation patients after the last round; None for a run that failed."""
    if (folder / "failed.txt").is_file():
        return None
    last = json.loads((folder / "rounds.jsonl").read_text().splitlines()[-1])
    return float(last["validation"][CHOSEN_BY[task]])


def conduct(study: Study) -> str:
    """All runs of one study; a line on what came of it. Writes study.json beside them."""
    started = time.perf_counter()
    tried: dict[float, float | None] = {}
    for rate in study.rates:
        run(study.config(rate, study.seeds[0]), study.run_folder(rate, study.seeds[0]), study.data, test=False)
        tried[rate] = validation(study.task, study.run_folder(rate, study.seeds[0]))
    known = {rate: score for rate, score in tried.items() if score is not None}
    if not known:
        raise RunError(f"{study.task} {study.entry}: every learning rate failed")
    chosen = max(known, key=lambda rate: (known[rate], -rate))  # of equals the smaller
    for seed in study.seeds:
        run(study.config(chosen, seed), study.run_folder(chosen, seed), study.data, test=True)
    lr = study.config(chosen, 0).training.lr
    scores = {f"{study.config(rate, 0).training.lr:g}": score for rate, score in tried.items()}
    about = {"entry": study.entry, "task": study.task, "chosen_by": CHOSEN_BY[study.task], "tried": scores, "lr": lr}
    about["runs"] = [str(study.run_folder(chosen, seed).relative_to(study.folder)) for seed in study.seeds]
    about["cpu_seconds"] = statistics.median(cpu_seconds(study.run_folder(chosen, seed)) for seed in study.seeds)
    about["edge"] = len(study.rates) > 1 and chosen in (study.rates[0], study.rates[-1])
    (study.folder / study.task / study.entry / "study.json").write_text(json.dumps(about, indent=1) + "\n")
    return f"{study.task} {study.entry}: lr {lr:g}, {CHOSEN_BY[study.task]} {known[chosen]:.3f} ({time.perf_counter() - started:.0f} s)"


def data_of(task: str, overrides: Sequence[str]) -> str:
    """Prepares the studies of a task; a hash over them and the base weights."""
    plan = planning.make_plan(configuration.load(CONFIGS / "tasks" / f"{task}.yaml", ["tracking.uri=null", *overrides]))
    return hashlib.sha256((plan.data_sha256 + hash_of(plan.weights)).encode()).hexdigest()


def main() -> None:
    """Run what is missing, side by side; then write tables and pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=TASKS, nargs="+", default=list(TASKS))
    parser.add_argument("--only", nargs="+", metavar="ENTRY", help="some files of configs/strategies/ (fedit always runs)")
    parser.add_argument("--small", action="store_true", help="a round, a rate, a seed: to see that everything works")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--runs", type=Path, help="where run folders stay (default: runs/strategies, --small: runs/strategies_small)")
    parser.add_argument(
        "--output", type=Path, help="default: benchmarks/results/strategies, --small, --only or one --task: the run folders' own"
    )
    given = parser.parse_args()
    rows = entries()
    if unknown := sorted(set(given.only or ()) - set(rows)):
        raise InputError(f"--only: expected files of configs/strategies/ ({', '.join(rows)}), found {', '.join(unknown)}")
    rows = [row for row in rows if given.only is None or row in ("fedit", *given.only)]
    folder = (given.runs or ROOT / "runs" / ("strategies_small" if given.small else "strategies")).resolve()
    public = not given.small and given.only is None and given.output is None and set(given.task) == set(TASKS)
    output = ROOT / "benchmarks" / "results" / "strategies" if public else (given.output or folder).resolve()
    overrides = SMALL if given.small else ()
    size = {"rates": RATES[1:2], "seeds": SEEDS[:1]} if given.small else {"rates": RATES, "seeds": SEEDS}
    studies = [
        Study(task=task, entry=row, folder=folder, data=data, overrides=overrides, **size)
        for task in given.task
        for data in (data_of(task, overrides),)
        for row in rows
    ]
    with ProcessPoolExecutor(given.jobs, mp_context=get_context("spawn")) as pool:
        for number, line in enumerate(pool.map(conduct, studies), 1):
            print(f"[{number}/{len(studies)}] {line}", flush=True)
    from benchmarks import strategies_table

    strategies_table.write(given.task, rows, folder, output, public=public)


if __name__ == "__main__":
    sys.exit(guarded(main))
