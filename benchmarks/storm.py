"""Real kills at random moments over runs of every kind of strategy: what is lost is done again, and no number changes.

    make storm                                          # 50 kills on a three-node cluster, 50 while a checkpoint is written; 13 minutes
    python -m benchmarks.storm --kills 6 --torn 6

Each kill is SIGKILL to a client actor, to the driver actor, or to the raylet of a node of a three-node cluster on this machine, at a moment
drawn over the length of the run. If the run ends, `raylora resume`'s function goes on with it. Its adapters' hashes, its bytes and the list
of its (round, client) records must be those of the undisturbed run. Writes benchmarks/results/storm.json. What to expect: all the same; a
client or a driver is back in seconds (a process with torch starts), a node in as many more as Ray takes to miss it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import small
from benchmarks.processes import children, title
from raylora import config as configuration
from raylora import experiment, launch, planning
from raylora.core.errors import RunError
from raylora.federation import checkpoint

VICTIMS = ("client", "driver", "node")
ROUNDS = 8
TRIES = 10  # for a kill that must land while the run is under way


def record(folder: Path, summary: Mapping[str, Any]) -> dict[str, Any]:
    """What must not change: hashes, bytes, and each (round, client) once."""
    lines = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    return {
        "adapter_sha256": summary["adapter_sha256"],
        "bytes": [summary["bytes_up"], summary["bytes_down"]],
        "lines": [[line["round"], line.get("client", ""), line["bytes_up"]] for line in lines],
    }


# ---- a cluster of three nodes


class Nodes:
    """Three Ray nodes on this machine; this process is connected to the first one, which is never killed."""

    def __init__(self) -> None:
        small.quick_to_notice()
        import ray
        from ray.cluster_utils import Cluster

        from raylora.cluster.local import spared

        self.store = {"object_store_memory": 80 << 20, "include_dashboard": False}
        self.sparing = contextlib.ExitStack()
        self.sparing.enter_context(spared())  # three dashboards and their agents take longer to start than a run lasts
        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, **self.store})
        self.others = [self._add(), self._add()]
        ray.init(address=self.cluster.address, log_to_driver=False, logging_level="CRITICAL")

    def _add(self) -> Any:
        return self.cluster.add_node(num_cpus=2, **self.store)

    def raylets(self) -> list[int]:
        return [node.all_processes["raylet"][0].process.pid for node in self.cluster.list_all_nodes()]

    def processes(self, name: str) -> list[int]:
        """Of the actors of a class, on any node."""
        return sorted(pid for raylet in self.raylets() for pid in children(raylet) if title(pid).startswith(f"ray::{name}"))

    def kill(self, victim: str, draw: np.random.Generator) -> bool:
        """Whether there was something to kill."""
        if victim == "node":
            busy = [node for node in self.others if any(map(_is_actor, children(_raylet(node))))]
            if not busy:
                return False
            os.kill(_raylet(busy[draw.integers(len(busy))]), signal.SIGKILL)
            return True
        there = self.processes("ClientActor" if victim == "client" else "DriverActor")
        if not there:
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(there[draw.integers(len(there))], signal.SIGKILL)
            return True
        return False

    def repair(self) -> None:
        """New nodes in the place of lost ones."""
        for node in [node for node in self.others if not title(_raylet(node))]:
            self.cluster.remove_node(node, allow_graceful=False)
            self.others.remove(node)
            self.others.append(self._add())

    def close(self) -> None:
        import ray

        ray.shutdown()
        self.cluster.shutdown()
        self.sparing.close()


def _raylet(node: Any) -> int:
    return int(node.all_processes["raylet"][0].process.pid)


def _is_actor(pid: int) -> bool:
    return title(pid).startswith("ray::ClientActor")


class Strike:
    """One kill, so many seconds after the start of a run, and the time until the next sign of progress."""

    def __init__(self, after_s: float, kill: Callable[[], bool]) -> None:
        self.after_s, self.kill = after_s, kill
        self.landed, self.ended = False, threading.Event()
        self.struck_at = self.recovered_at = 0.0
        self.thread: threading.Thread | None = None

    def __call__(self, event: Mapping[str, Any]) -> None:
        if event["event"] == "start" and self.thread is None:
            self.thread = threading.Thread(target=self._wait, daemon=True)
            self.thread.start()
        if event["event"] in ("round", "phase") and self.landed and not self.recovered_at:
            self.recovered_at = time.monotonic()

    def _wait(self) -> None:
        if not self.ended.wait(self.after_s):
            self.struck_at = time.monotonic()
            self.landed = self.kill()

    def close(self) -> None:
        self.ended.set()
        if self.thread is not None:
            self.thread.join()


def disturbed(settings: configuration.Config, out: Path, strike: Strike) -> tuple[dict[str, Any], bool]:
    """The summary of a run that is struck once, and gone on with if that ended it; whether it felt it: one that was over but for its page,
    or had not begun, did not."""
    try:
        summary = launch.run(settings, out, on_event=strike)
        return summary, any(actor["restarts"] for actor in summary["actors"])
    except RunError as error:
        if "raylora resume" not in str(error):
            raise
        for _ in range(3):
            with contextlib.suppress(RunError):
                return launch.resume(out, on_event=strike), True
        raise
    finally:
        strike.close()


def undisturbed(settings: configuration.Config, out: Path) -> tuple[dict[str, Any], float]:
    """The record of a run that nothing happens to, and the seconds from the start of its rounds, when a strike begins to wait, to the end of
    the last one."""
    at: dict[str, float] = {}
    summary = launch.run(settings, out, on_event=lambda event: at.update({event["event"]: time.monotonic()}))
    return record(out, summary), at["round"] - at["start"]


def storm(kills: int, seed: int, folder: Path, data: Mapping[str, Any], kinds: Sequence[str]) -> dict[str, Any]:
    """Kills in turn over the kinds of strategy and the kinds of victim."""
    nodes, draw = Nodes(), np.random.default_rng(seed)
    expected, lengths = {}, {}
    results = []
    try:
        for number in range(kills):
            kind, victim = kinds[number % len(kinds)], VICTIMS[(number // len(kinds) + number % len(kinds)) % len(VICTIMS)]
            settings = small.config(kind, ROUNDS, data)
            if kind not in expected:
                expected[kind], lengths[kind] = undisturbed(settings, folder / kind)
            for attempt in range(TRIES):
                out = folder / f"{number}-{attempt}"
                strike = Strike(float(draw.uniform(0, lengths[kind])), lambda victim=victim: nodes.kill(victim, draw))
                summary, felt = disturbed(settings, out, strike)
                found = record(out, summary)
                same = found == expected[kind]
                nodes.repair()
                landed = strike.landed and felt
                if landed or not same:
                    break
            took = round(strike.recovered_at - strike.struck_at, 2) if strike.recovered_at and landed else None
            results.append({"kind": kind, "victim": victim, "landed": landed, "same": same, "recovered_s": took})
            if not same:
                results[-1]["expected_and_found"] = {
                    key: [value, found[key]] for key, value in expected[kind].items() if value != found[key]
                }
            print(json.dumps(results[-1]), file=sys.stderr, flush=True)
    finally:
        nodes.close()
    return summed_up(results)


def summed_up(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts, and the median time to recover by victim."""
    times = {victim: [r["recovered_s"] for r in results if r["victim"] == victim and r["recovered_s"] is not None] for victim in VICTIMS}
    return {
        "kills": sum(r["landed"] for r in results),
        "by_victim": {victim: sum(r["landed"] and r["victim"] == victim for r in results) for victim in VICTIMS},
        "by_kind": {kind: sum(r["landed"] and r["kind"] == kind for r in results) for kind in small.KINDS},
        "same": all(r["same"] for r in results),
        "median_s_to_recover": {victim: round(statistics.median(t), 2) for victim, t in times.items() if t},
        "runs": results,
    }


# ---- while a checkpoint is being written

FORKS = multiprocessing.get_context("forkserver")


def torn(kills: int, seed: int, folder: Path, data: Mapping[str, Any], rounds: int = 10) -> dict[str, Any]:
    """A ten-round run, killed in the writing of every checkpoint and gone on with; over again until so many kills are done."""
    FORKS.set_forkserver_preload(["raylora.experiment", "benchmarks.small"])
    draw, killed, inside, same, noticed = np.random.default_rng(seed), 0, 0, [], 0
    durations: list[float] = []
    number = 0
    while killed < kills:
        kind = list(small.KINDS)[number % len(small.KINDS)]
        settings = small.config(kind, rounds, data)
        with _timed(durations):
            expected = record(folder / kind, small.run_here(settings, folder / kind))
        longest = statistics.median(durations)
        out = folder / f"torn-{number}"
        for at in range(1, rounds + 1):
            if killed < kills:
                process = FORKS.Process(target=writing, args=(settings.as_dict(), str(out), at, float(draw.uniform(0.0, longest))))
                process.start()
                process.join()
                assert process.exitcode in (-signal.SIGALRM, -signal.SIGKILL), process.exitcode
                killed, inside = killed + 1, inside + (process.exitcode == -signal.SIGALRM)
                noticed += any(out.glob("checkpoints/.*.partial"))
        same.append(record(out, small.run_here(settings, out, resume=True)) == expected)
        number += 1
    return {"kills": killed, "inside_the_write": inside, "left_half_written": noticed, "runs": number, "same": all(same)}


@contextlib.contextmanager
def _timed(durations: list[float]) -> Any:
    save = checkpoint.save

    def timed(*arguments: Any) -> Path:
        began = time.monotonic()
        try:
            return save(*arguments)
        finally:
            durations.append(time.monotonic() - began)

    checkpoint.save = timed
    try:
        yield
    finally:
        checkpoint.save = save


def writing(values: Mapping[str, Any], out: str, at: int, after_s: float) -> None:
    """A process that runs, or goes on, and is killed so many seconds after it began to write the checkpoint of round `at`."""
    save = checkpoint.save

    def fatal(folder: Path, progress: Any, rows: int) -> Path:
        if progress.round == at:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)  # no handler: the kernel ends the process where it stands
            signal.setitimer(signal.ITIMER_REAL, max(after_s, 1e-6))
            save(folder, progress, rows)
            os.kill(os.getpid(), signal.SIGKILL)  # written, and nothing after it
        return save(folder, progress, rows)

    checkpoint.save = fatal
    settings, folder = configuration.from_dict(values), Path(out)
    folder.mkdir(exist_ok=True)
    plan = planning.make_plan(settings)
    for _ in experiment.run_experiment(plan, folder, small.in_process, resume=(folder / "rounds.jsonl").exists()):
        pass


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50, help="on the cluster")
    parser.add_argument("--kinds", choices=small.KINDS, nargs="+", default=list(small.KINDS), help="of strategy, on the cluster")
    parser.add_argument("--torn", type=int, default=50, help="while a checkpoint is written")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=json.loads, default=small.DATA, help="the data section, as JSON")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "storm.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="raylora-storm-") as folder:
        found: dict[str, Any] = {"seed": options.seed}
        if options.torn:
            found["checkpoints"] = torn(options.torn, options.seed, Path(folder) / "torn", options.data)
        if options.kills:
            found["cluster"] = storm(options.kills, options.seed, Path(folder) / "cluster", options.data, options.kinds)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(found, indent=1) + "\n")
    print(
        json.dumps(
            {key: {k: v for k, v in value.items() if k != "runs"} if isinstance(value, dict) else value for key, value in found.items()},
            indent=1,
        )
    )
    missed = options.kills - found["cluster"]["kills"] if options.kills else 0
    if missed:
        print(f"{missed} of {options.kills} kills were felt by no run", file=sys.stderr)
    sys.exit(0 if not missed and all(part["same"] for part in found.values() if isinstance(part, dict)) else 1)


if __name__ == "__main__":
    main()
