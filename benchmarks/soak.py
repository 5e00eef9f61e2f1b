"""A long run with random kills: memory stays flat, files stay few, and the result is that of a run that nothing happened to.

    make soak                                           # 2,000 rounds, 40 kills; three to six minutes
    python -m benchmarks.soak --rounds 120 --kills 4

One tiny federation (private adapters and a client sample, so that there is something to lose), its clients in two actors, on a Ray of its
own. At random moments a client actor or the driver is killed; a run that ends is resumed. Drivers are killed in the first half only: what
one grows by shows in one that lives long. Every ten rounds the memory of every process (what is its own or shared, without the pages of
files) and the number and size of the run folder's files are noted. Flat: in a thousand rounds a process of each kind (command, driver,
client) grows by less than 10 %, once it has settled; the slope is that within the lives of single processes, taken together, so that a new
process hides nothing and one that lived briefly says little. Writes benchmarks/results/soak.json.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import small
from benchmarks.processes import children, held, title
from benchmarks.storm import record
from raylora import launch
from raylora.core.errors import MachineError

EVERY = 10  # rounds between two looks
WARM = 100  # rounds that a process may take until its memory has settled
MOST_GROWTH = 0.10  # of its memory, in a thousand rounds


class Watch:
    """Looks at memory and files as rounds go by, and kills when it is time."""

    def __init__(self, out: Path, kills: Mapping[int, str]) -> None:
        self.out, self.due = out, dict(kills)
        self.seen: list[dict[str, Any]] = []
        self.done: list[str] = []
        self.kinds: dict[int, str] = {}  # process -> command | driver | client

    def __call__(self, event: Mapping[str, Any]) -> None:
        if event["event"] != "round":
            return
        t = event["round"]
        if t % EVERY == 0:
            files = [path for path in self.out.rglob("*") if path.is_file()]
            sizes = [path.stat().st_size for path in files if path.name != "rounds.jsonl" and path.exists()]
            self.seen.append(
                {"round": t, "files": len(files), "bytes": sum(sizes), "memory": {p: held(p) / 2**20 for p in self.processes()}}
            )
        if (victim := self.due.pop(t, None)) is not None:
            there = [pid for pid, name in self.processes().items() if name == victim]
            if there:
                threading.Timer(float(np.random.default_rng(t).uniform(0, 0.05)), _kill, (there[t % len(there)],)).start()
                self.done.append(victim)

    def processes(self) -> dict[int, str]:
        """This process and the actors that it has started."""
        found = {os.getpid(): "command"}
        for ray in children(os.getpid()):
            for pid in children(ray):
                name = title(pid)
                kind = "client" if name.startswith("ray::ClientActor") else "driver" if name.startswith("ray::DriverActor") else None
                if kind is not None:
                    found[pid] = kind
        self.kinds |= found
        return found


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def soak(rounds: int, kills: int, seed: int, folder: Path, data: Mapping[str, Any]) -> dict[str, Any]:
    """The long run."""
    more = {"sampling": {"kind": "uniform", "fraction": 0.5}, "evaluation": {"every": 5, "bootstrap": 50, "overlays": 0}}
    settings = small.config("personalised", rounds, data, **more)
    expected = record(folder / "undisturbed", small.run_here(settings, folder / "undisturbed"))
    draw = np.random.default_rng(seed)
    moments = sorted(draw.choice(np.arange(5, rounds - 5), size=kills, replace=False).tolist())
    watch = Watch(folder / "run", {t: "driver" if draw.integers(2) and t < rounds / 2 else "client" for t in moments})
    began, resumed = time.monotonic(), 0
    summary = None
    while summary is None:
        try:
            summary = launch.resume(watch.out, on_event=watch) if resumed else launch.run(settings, watch.out, on_event=watch)
        except MachineError:
            resumed += 1
    return {
        "rounds": rounds,
        "kills": {kind: watch.done.count(kind) for kind in ("client", "driver")},
        "resumed": resumed,
        "same": record(watch.out, summary) == expected,
        "seconds": round(time.monotonic() - began, 1),
        "files": {"first": watch.seen[0]["files"], "most": max(look["files"] for look in watch.seen), "last": watch.seen[-1]["files"]},
        "mib_of_files_but_the_record": round(max(look["bytes"] for look in watch.seen) / 2**20, 2),
        "memory": growth(watch),
    }


def growth(watch: Watch) -> dict[str, Any]:
    """For each kind of process: how many there were, the most MiB of one, and MiB that one that has settled grows by in a thousand rounds
    (None if none lived long enough)."""
    lives: dict[int, list[tuple[int, float]]] = {}
    for look in watch.seen:
        for pid, mib in look["memory"].items():
            if mib:
                lives.setdefault(pid, []).append((look["round"], mib))
    found: dict[str, Any] = {}
    for kind in sorted(set(watch.kinds.values())):
        own = [np.array(life) for pid, life in lives.items() if watch.kinds[pid] == kind]
        settled = [life[life[:, 0] >= life[0, 0] + WARM] for life in own]
        centred = np.concatenate([life - life.mean(axis=0) for life in settled if len(life) > 1] or [np.zeros((0, 2))])
        spread = float(centred[:, 0] @ centred[:, 0])
        slope = 1000 * float(centred[:, 0] @ centred[:, 1]) / spread if spread else None
        most = max(float(life[:, 1].max()) for life in own)
        found[kind] = {"processes": len(own), "most_mib": round(most, 1), "mib_in_1000_rounds": slope if slope is None else round(slope, 2)}
    flat = all((one["mib_in_1000_rounds"] or 0) < MOST_GROWTH * one["most_mib"] for one in found.values())
    return {**found, "flat": flat}


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=2000)
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=json.loads, default=small.DATA, help="the data section, as JSON")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "soak.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="raylora-soak-") as folder:
        found = soak(options.rounds, options.kills, options.seed, Path(folder), options.data)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))
    sys.exit(0 if found["same"] and found["memory"]["flat"] else 1)


if __name__ == "__main__":
    main()
