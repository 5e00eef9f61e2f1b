"""`python -m benchmarks.peers WORKLOAD`: raylora beside a bare loop, Flower and pfl on the same work.

    python -m benchmarks.peers W1 [--clients 64] [--systems raylora,bare,flower,pfl] [--rounds 5] [--repeat 3] [--json] [--output FILE]
    python -m benchmarks.peers all                # every workload of the README's table into benchmarks/results/peers/, then table and picture

A system that is not installed is left out, with the reason. No figure is given unless all systems reached the same losses.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from benchmarks.peers import measure, plot
from benchmarks.peers.workloads import WORKLOADS

CAMPAIGN = (("idle", 8), ("W0", 8), ("W1", 8), ("W1", 64), ("W1", 256), ("W1s", 64), ("W2", 8), ("W3", 8))
ROUNDS = {("W1", 8): 20}  # instead of the workload's own: five so short ones would be over before a busy moment of the machine is
NAMES = (*measure.DEFAULT, "raylora_unstacked")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("workload", choices=[*WORKLOADS, "all"])
    parser.add_argument("--clients", type=int, help="default: the workload's own")
    parser.add_argument("--rounds", type=int, help="default: the workload's own")
    parser.add_argument("--systems", type=lambda text: text.split(","), help=f"of {','.join(NAMES)}; default: {','.join(measure.DEFAULT)}")
    parser.add_argument("--repeat", type=int, default=3, help="runs of each system")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="processes or threads that compute at once")
    parser.add_argument("--no-memory", dest="memory", action="store_false", help="leave out the runs that look at memory")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON and nothing else")
    parser.add_argument("--output", type=Path, help="write the figures as JSON; of `all`: the folder")
    options = parser.parse_args()
    systems = options.systems or list(NAMES if options.workload == "all" else measure.DEFAULT)
    unknown = [name for name in systems if name not in NAMES]
    if unknown or min(options.clients or 1, options.rounds or 1, options.repeat, options.workers) < 1:
        parser.error(f"--systems: unknown {unknown[0]!r}" if unknown else "expected numbers of at least 1")

    def one(workload: str, clients: int | None, rounds: int | None = None) -> dict[str, Any]:
        work = WORKLOADS[workload]
        clients, rounds = clients or work.clients, options.rounds or rounds or work.rounds
        say = lambda text: print(text, file=sys.stderr, flush=True)  # noqa: E731
        return measure.measure(workload, clients, rounds, systems, options.repeat, options.workers, memory=options.memory, say=say)

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # whoever ends this ends what it started
    try:
        if options.workload != "all":
            found = one(options.workload, options.clients)
            text = json.dumps(found)
            if options.output:
                options.output.write_text(text + "\n", encoding="utf-8")
            print(text if options.json else plot.in_words(found))
            return 0
        folder = options.output or plot.RESULTS
        folder.mkdir(parents=True, exist_ok=True)
        for workload, clients in CAMPAIGN:
            found = one(workload, clients, ROUNDS.get((workload, clients)))
            (folder / f"{workload}_{clients}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
            print(plot.in_words(found), flush=True)
    except (measure.Differ, RuntimeError) as error:
        print(error, file=sys.stderr)
        return 1
    if folder == plot.RESULTS:
        plot.write(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
