"""`python -m benchmarks.peers.memory [--repeat 3]`: peak memory of all processes of a system as the number of clients grows.

W1 with 8 and with 256 clients, as many of them in a pass, each watched over 512 clients' rounds (a heap spreads with each, however few the
clients), raylora and Flower in turn, medians over the repeats: into benchmarks/results/peers_memory.json. About nine minutes on two cores with
nothing else to do.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.peers import build, measure, prepare
from benchmarks.peers.names import NAMES
from benchmarks.peers.work import ViT
from benchmarks.peers.workloads import WORKLOADS
from raylora.report.table import Table, decimal, to_markdown, words

STORED = build.ROOT / "benchmarks" / "results" / "peers_memory.json"
COMMAND = "`python -m benchmarks.peers.memory`"
WORKLOAD, CLIENTS, SYSTEMS = "W1", (8, 256), ("raylora", "flower")
COMPARED = 2  # rounds: over many more the last bits of a sum grow into other losses


def watch(counts: Sequence[int], systems: Sequence[str], repeats: int, workers: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Peak PSS in MB: system -> number of clients -> the median, and every run's. Raises Differ where two systems did not do the same work."""
    work = WORKLOADS[WORKLOAD]
    peaks: dict[str, dict[str, list[float]]] = {system: {str(n): [] for n in counts} for system in systems}
    losses: dict[int, dict[str, measure.Run]] = {n: {} for n in counts}
    difference = 0.0
    with tempfile.TemporaryDirectory(prefix="peers-") as temporary:
        for n in counts:
            say(f"writing the data of {n} clients")
            prepare.write(Path(temporary) / str(n), WORKLOAD, n, max(2, -(-work.watched // n)), workers)
        for repeat in range(repeats):
            for n in counts:
                for system in systems[repeat % len(systems) :] + systems[: repeat % len(systems)]:
                    say(f"repeat {repeat + 1} of {repeats}: {system}, {n} clients")
                    (command,) = measure.commands(system, work, min(counts), workers).values()  # as many clients in a pass for each n
                    run = measure.once(command, Path(temporary) / str(n), memory=True)
                    assert run.peak_pss_mb is not None
                    peaks[system][str(n)].append(run.peak_pss_mb)
                    losses[n][f"{system} {repeat}"] = replace(run, losses=run.losses[:COMPARED])
                    difference = max(difference, measure.compare(losses[n]))
                    say(f"{run.peak_pss_mb:.0f} MB")
    return {
        "workload": WORKLOAD,
        "repeats": repeats,
        "peak_pss_mb": {system: {n: statistics.median(several) for n, several in found.items()} for system, found in peaks.items()},
        "runs": peaks,
        "update_mb": sum(4 * p.numel() for p in ViT(work).parameters() if p.requires_grad) / 2**20,
        "largest_loss_difference": difference,
        "machine": measure.machine(),
    }


def table(found: Mapping[str, Any]) -> Table:
    """A row a system: its peaks, the last beside the first, and the same without the updates that lie there to be summed."""
    peaks: Mapping[str, Mapping[str, float]] = found["peak_pss_mb"]
    counts = sorted(map(int, next(iter(peaks.values()))))
    few, many = counts[0], counts[-1]
    updates = found["update_mb"] * (many - few)
    rows = tuple(
        (NAMES[system], *(of[str(n)] for n in counts), of[str(many)] / of[str(few)], (of[str(many)] - updates) / of[str(few)])
        for system, of in peaks.items()
    )
    columns = (
        words("Peak PSS, MB"),
        *(decimal(f"{n} clients", 0) for n in counts),
        decimal(f"{many} beside {few}", 2),
        decimal(f"without {many - few} updates ({updates:.0f} MB)", 2),
    )
    return Table("Memory and clients", columns, rows)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers.memory", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--output", type=Path, default=STORED)
    options = parser.parse_args()
    if options.repeat < 1:
        parser.error("--repeat: expected at least 1")
    systems = tuple(system for system in SYSTEMS if measure.absent(system) is None)
    say = lambda text: print(text, file=sys.stderr, flush=True)  # noqa: E731
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # whoever ends this ends what it started
    try:
        found = watch(CLIENTS, systems, options.repeat, len(os.sched_getaffinity(0)), say)
    except (measure.Differ, RuntimeError) as error:
        print(error, file=sys.stderr)
        return 1
    options.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(to_markdown(table(found)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
