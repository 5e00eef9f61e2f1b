"""Systems side by side: each in processes of its own, one after the other, over and over, and their losses compared before a figure is given.

Time and memory are taken in different runs, because looking at memory (PSS, the proportional set size, of all processes of a system) takes
CPU time. All systems run under one environment, with what raylora sets for itself: one OpenMP thread, and glibc told to keep its pages.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers import build, gemm, prepare
from benchmarks.peers.workloads import WORKLOADS, Workload
from benchmarks.processes import family, pss
from raylora.cluster.local import KEEP_PAGES

ROOT = build.ROOT
TOLERANCE = 1e-4
"""Of a client's mean loss in a round, absolute; losses are about 1. Another order of sums moves them by some 1e-6, a step more or less or a
missing average by more than 1e-2."""
PASS = 64  # samples in one pass, at most: beside 32, W1 and W1s are 2 to 3 % faster on these cores and take a tenth more memory
LIMIT = 3600.0  # seconds of one run
DEFAULT = ("raylora", "bare", "flower", "pfl")


class Differ(Exception):
    """Two systems did not do the same work."""


@dataclass(frozen=True)
class Run:
    """What one run of one system said, and when."""

    ends: tuple[float, ...]  # seconds from the start of its first process to the end of each round
    cpu: tuple[float, ...] | None  # CPU seconds so far, at the same moments; None of clients that are idle
    losses: np.ndarray  # (rounds, clients)
    steps: int
    peak_pss_mb: float | None


Command = Callable[[Path, Path], list[str]]
"""(folder, report) to the command of one system."""


def module(name: str, *words: str, python: Path | str = sys.executable) -> Command:
    return lambda folder, report: [str(python), "-m", f"benchmarks.peers.{name}", str(folder), str(report), *words]


def raylora_settings(work: Workload, clients: int, workers: int) -> tuple[str, ...]:
    """raylora as one would set it: small steps stacked, the same number of stacks for each worker; a frozen prefix is kept by default."""
    if work.size != "w1":
        return ()
    passes = -(-clients // (workers * max(1, PASS // work.batch)))  # of a worker in a round
    return (f"training.stack={-(-clients // (workers * passes))}",)


def commands(system: str, work: Workload, clients: int, workers: int) -> dict[str, Command]:
    """The runs that a system's name stands for: the best of them counts."""
    if system == "raylora":
        return {"": module("with_raylora", *raylora_settings(work, clients, workers))}
    if system == "raylora_unstacked":
        if work.idle:
            return {}  # nothing to stack
        return {"": module("with_raylora", "training.stack=1", "training.cache=off")}
    if system == "bare":
        return {kind: module("bare", kind) for kind in ("processes", "threads")}
    return {"": module(f"with_{system}", python=build.python(system))}


def absent(system: str) -> str | None:
    """Why a system cannot run here."""
    if system in build.PEERS and not build.complete(system):
        return f"its environment .peers/{system} is not built (make peers)"
    return None


def measure(
    workload: str,
    clients: int,
    rounds: int,
    systems: Sequence[str],
    repeats: int,
    workers: int,
    *,
    memory: bool = True,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Seconds and, unless it is not asked for, memory of every system. Raises Differ where two of them did not do the same work."""
    work = WORKLOADS[workload]
    skipped = {system: why for system in systems if (why := absent(system))}
    runs = {
        (system, kind): command
        for system in systems
        if system not in skipped
        for kind, command in commands(system, work, clients, workers).items()
    }
    with tempfile.TemporaryDirectory(prefix="peers-") as temporary:
        scratch = Path(temporary)
        folder, short = scratch / "timed", scratch / "watched"
        say(f"writing the data of {clients} clients")
        watched_rounds = max(min(rounds, 2), -(-work.watched // clients))
        prepare.write(scratch / "data", workload, clients, max(rounds, watched_rounds), workers)
        for path, count in ((folder, rounds), (short, watched_rounds)):
            prepare.shorten(scratch / "data", path, count)
        timed: dict[tuple[str, str], list[Run]] = {key: [] for key in runs}
        rates: list[float] = []
        for repeat in range(repeats):
            rates.append(gemm.rate(work.batch * work.tokens, work.width, 4 * work.width, workers))
            order = list(runs)[repeat % len(runs) :] + list(runs)[: repeat % len(runs)]
            for key in order:
                say(f"{workload}, repeat {repeat + 1} of {repeats}: {' '.join(key)}")
                timed[key].append(once(runs[key], folder, memory=False))
        watched: dict[tuple[str, str], Run] = {}
        for key in runs if memory else ():
            say(f"{workload}, memory: {' '.join(key)}")
            watched[key] = once(runs[key], short, memory=True)
    difference = compare({" ".join(key).strip(): run for key, several in timed.items() for run in several})
    rate = statistics.median(rates)
    flops = clients * work.samples * work.flops()
    found: dict[str, dict[str, Any]] = {}
    for (system, kind), several in timed.items():
        one = described(several, watched.get((system, kind)), flops / rate)
        if kind:
            one["kind"] = kind
        if system not in found or one["seconds_per_round"] < found[system]["seconds_per_round"]:
            found[system] = one
    return {
        "workload": workload,
        "clients": clients,
        "rounds": rounds,
        "repeats": repeats,
        "workers": workers,
        "systems": {system: found[system] for system in systems if system in found},
        "skipped": skipped,
        "matrix_gflops": rate / 1e9,
        "gflop_per_round": flops / 1e9,
        "largest_loss_difference": difference,
        "tolerance": TOLERANCE,
        "machine": machine(),
    }


def described(several: Sequence[Run], watched: Run | None, ideal: float) -> dict[str, Any]:
    """Medians over a system's runs. `ideal`: the seconds that the round's products would take at the machine's own rate."""
    later = [gap for run in several for gap in np.diff(run.ends)] or [run.ends[0] for run in several]
    cpu = [gap for run in several if run.cpu is not None for gap in (np.diff(run.cpu) if len(run.cpu) > 1 else run.cpu)]
    per_round = float(np.median(later))
    return {
        "seconds_per_round": per_round,
        "seconds_to_first_round": statistics.median(run.ends[0] for run in several),
        "peak_pss_mb": watched.peak_pss_mb if watched else None,
        "steps": several[0].steps,
        "seconds_in_all": statistics.median(run.ends[-1] for run in several),
        "cpu_seconds_per_round": float(np.median(cpu)) if cpu else None,
        "matrix_share": ideal / per_round if ideal else None,
        "spread": [float(min(later)), float(max(later))],
    }


def compare(runs: Mapping[str, Run]) -> float:
    """The largest difference of a client's loss in a round from that of the first run. Raises Differ above the tolerance, or for other steps."""
    (first, reference), *others = runs.items()
    largest = 0.0
    for name, run in others:
        if run.losses.shape != reference.losses.shape or run.steps != reference.steps:
            raise Differ(
                f"{name} made {run.steps} steps in {len(run.losses)} rounds, {first} {reference.steps} in {len(reference.losses)}: no figures"
            )
        gap = np.abs(run.losses - reference.losses)
        if not gap.max() <= TOLERANCE:
            round, client = np.unravel_index(np.nanargmax(np.where(np.isnan(gap), np.inf, gap)), gap.shape)
            raise Differ(
                f"round {round}, client {client}: the loss is {run.losses[round, client]:.6f} in {name} and "
                f"{reference.losses[round, client]:.6f} in {first}, more than {TOLERANCE:g} apart: no figures"
            )
        largest = max(largest, float(gap.max()))
    return largest


def once(command: Command, folder: Path, *, memory: bool) -> Run:
    """One run of one system in a session of its own. Raises RuntimeError with its last words if it fails."""
    report = folder / "report.jsonl"
    report.unlink(missing_ok=True)
    quiet = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "FLWR_TELEMETRY_ENABLED": "0"}
    words = command(folder, report)
    with (folder / "output.txt").open("w+") as output:
        began = time.time()
        process = subprocess.Popen(
            words, cwd=ROOT, env={**os.environ, **KEEP_PAGES, **quiet}, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        peak = 0
        try:
            while process.poll() is None and time.time() - began < LIMIT:
                if memory:
                    peak = max(peak, sum(map(pss, family(process.pid))))
                time.sleep(0.1)
            if process.returncode != 0:
                output.seek(0)
                why = "is not done" if process.returncode is None else f"ended with {process.returncode}"
                raise RuntimeError(f"{' '.join(words[1:])} {why} after {time.time() - began:.0f} s:\n{output.read()[-3000:]}")
        finally:
            end(process)
    lines = [json.loads(line) for line in report.read_text().splitlines()]
    return Run(
        ends=tuple(line["time"] - began for line in lines),
        cpu=None if lines[0]["cpu"] is None else tuple(line["cpu"] for line in lines),
        losses=np.array([line["losses"] for line in lines]),
        steps=sum(line["steps"] for line in lines),
        peak_pss_mb=peak / 2**20 if memory else None,
    )


def end(process: subprocess.Popen[bytes]) -> None:
    """Whatever is left of a run that did not end by itself."""
    if process.poll() is not None:
        return
    for pid in reversed(family(process.pid)):
        try:
            os.kill(pid, signal.SIGKILL)
        except OSError:
            continue
    process.wait()


def machine() -> dict[str, Any]:
    """Where the figures are from."""
    import ray
    import torch

    pins = {peer: (build.HERE / f"{peer}.txt").read_text().split() for peer in build.PEERS}
    of_peers = {
        name: version for lines in pins.values() for name, _, version in (line.partition("==") for line in lines) if name in ("flwr", "pfl")
    }
    models = [line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "processor": models[0] if models else platform.machine(),
        "cpus": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "ray": ray.__version__,
        **of_peers,
        "load_before": os.getloadavg()[0],
    }
