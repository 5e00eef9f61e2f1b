"""The work in raylora: `python -m benchmarks.peers.with_raylora FOLDER REPORT [KEY=VALUE ...]`.

What `raylora run` does, by the same function: the plan, Ray, the driver actor, client actors, rounds with every byte counted, every update
checked, the record and a checkpoint (synced to the disk) after each round. It is stopped after the last round, before the test patients are
scored and the report is written, which the other systems do not do; validation and MLflow are off. Features of the frozen prefix are kept in a
folder that is empty at the start, so what they cost is in the first round. Clients that return at once (`idle`) are those of
`benchmarks.overhead`: the same executor, checks, byte counts, record and checkpoints, without a configuration's plan.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.peers.settings import config
from benchmarks.peers.workloads import IDLE_MB, Folder, Report
from raylora import launch
from raylora.core.errors import InputError, RunError


class LastRound(Exception):
    """The last round is over."""


def main() -> None:
    folder, report = Folder(Path(sys.argv[1])), Report(Path(sys.argv[2]))
    idle(folder, report) if folder.work.idle else train(folder, report)


def idle(folder: Folder, report: Report) -> None:
    """Clients that return at once."""
    from benchmarks import overhead

    work = overhead.Work(clients=folder.clients, actors=folder.workers, idle_mb=IDLE_MB)

    def rounds() -> None:
        with overhead.federation(work) as parties, tempfile.TemporaryDirectory() as kept:
            overhead.play_on(parties, work, folder.rounds, keep=Path(kept), each=lambda losses: report.round(losses, 0))

    overhead.connected(rounds)


def train(folder: Folder, report: Report) -> None:
    """`raylora run`, up to its last round."""

    def on_event(event: Mapping[str, Any]) -> None:
        if event["event"] != "round":
            return
        of_clients = [line for line in event["lines"] if line["kind"] == "client"]
        report.round([line["loss"] for line in of_clients], len(of_clients) * folder.work.steps)
        if event["round"] + 1 == folder.rounds:
            raise LastRound

    with tempfile.TemporaryDirectory() as out:
        an_actor_a_worker = f"placement.clients_per_actor={-(-folder.clients // folder.workers)}"
        settings = config(folder.path, folder.work.name, folder.rounds, (f"data.cache={out}/cache", an_actor_a_worker, *sys.argv[3:]))
        try:
            launch.run(settings, Path(out) / "run", on_event=on_event)
        except LastRound:
            pass
        except (InputError, RunError) as error:
            sys.exit(str(error))


if __name__ == "__main__":
    main()
