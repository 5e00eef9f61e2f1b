"""How long a federation would take to a Dice of 0.8 on lines of 1, 10 and 100 Mbit/s: FedIT, Med-DualLoRA and averaging every weight.

    python -m benchmarks.time_to_dice                   # three runs on the demo's patients, 22 rounds, each validated
    python -m benchmarks.time_to_dice --step-s 0.5      # with this time of a local step instead of the measured one

One run a strategy is enough: its bytes and its steps a round are known, and lines change no score. Time is that of the virtual clock
(`raylora.core.clock`): every round waits for its slowest client, both directions have the same rate, a message has 0.05 s of latency. The
score is the mean Dice over clients on validation patients. The learning rate of fedavg_full is a tenth of the adapters', as in
`benchmarks.strategies`. Writes benchmarks/results/time_to_dice.{json,md}; run folders stay in runs/time_to_dice/ and are not run again.
What to expect: fedavg_full needs the fewest rounds and is first where the line is fast; at 1 Mbit/s its bytes decide, and FedIT is. (The
demo's U-Net is small: all its weights are three and a half times the adapters; in the papers 28 MB stand against 1.8 to 3.6 of the
U-Net, and 358 MB against 0.8 of the ViT.)
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from raylora import config as configuration
from raylora import experiment, planning
from raylora.cli import guarded
from raylora.config import Config
from raylora.core.clock import Line, Trip
from raylora.federation.build import build_host
from raylora.federation.executor import InProcess
from raylora.report.table import Table, print_table, seconds, terminal, to_markdown, whole, words

ROOT = Path(__file__).resolve().parent.parent
STRATEGIES: Mapping[str, Sequence[str]] = {"fedit": (), "med_duallora": (), "fedavg_full": ("training.lr=1e-3",)}
MBIT = (1.0, 10.0, 100.0)
LATENCY_S = 0.05
TARGET = 0.8
OVERRIDES = (
    "training.rounds=22",
    "data.fractions=[0.6,0.1,0.1,0.2]",
    "evaluation.every=1",
    "evaluation.overlays=0",
    "tracking.uri=null",
    "placement.clients_per_actor=4",
)


def timeline(lines: Iterable[Mapping[str, Any]], line: Line, compute_s: Mapping[str, float]) -> list[tuple[float, float | None]]:
    """(virtual seconds since the start, validation Dice or None) after each round of a record whose rounds wait for everybody.

    lines: of rounds.jsonl; line: of every client; compute_s: client -> seconds that it computes in a round.
    """
    found, now, slowest = [], 0.0, 0.0
    for item in lines:
        if item["kind"] == "client":
            trip = Trip(line=line, compute_s=compute_s[item["client"]])
            slowest = max(slowest, trip.seconds(item["bytes_down"], item["bytes_up"]))
        elif item["kind"] == "round":
            now, slowest = now + slowest, 0.0
            found.append((now, item["validation"].get("dice")))
    return found


def reached(times: Sequence[tuple[float, float | None]], target: float) -> tuple[int, float] | None:
    """(rounds, virtual seconds) until the score is first there; None if it never is."""
    for number, (now, score) in enumerate(times, 1):
        if score is not None and score >= target:
            return number, now
    return None


def conducted(config: Config, folder: Path) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """(the record, steps of each client a round) of a run, made if it is not there yet."""
    plan = planning.make_plan(config)
    summary = folder / "summary.json"
    if not summary.is_file() or json.loads(summary.read_text())["config_sha256"] != config.sha256():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").write_text(configuration.dump(config))
        for event in experiment.run_experiment(plan, folder, lambda p: InProcess(build_host(p.spec, p.weights)), resume=True):
            if event["event"] == "round":
                print(f"{config.name}: round {event['round'] + 1}/{event['rounds']}", file=sys.stderr, flush=True)
    return [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()], dict(plan.dials.steps)


def main() -> None:
    """Run what is missing, then the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=ROOT / "configs" / "demo_segmentation.yaml")
    parser.add_argument("--target", type=float, default=TARGET)
    parser.add_argument("--step-s", type=float, help="seconds of one local step (default: each strategy's own median here)")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    given = parser.parse_args()
    rows, about = [], {}
    for name, own in STRATEGIES.items():
        config = configuration.load(given.config, [*OVERRIDES, f"strategy={{name: {name}}}", f"name={name}", *own, *given.overrides])
        lines, steps = conducted(config, ROOT / "runs" / "time_to_dice" / f"{name}_{config.sha256()[:8]}")
        clients = [line for line in lines if line["kind"] == "client"]
        step_s = given.step_s or statistics.median(line["seconds"] / steps[line["client"]] for line in clients)
        compute_s = {client: count * step_s for client, count in steps.items()}
        at = {mbit: timeline(lines, Line(up_mbit=mbit, down_mbit=mbit, latency_s=LATENCY_S), compute_s) for mbit in MBIT}
        hits = {mbit: reached(times, given.target) for mbit, times in at.items()}
        mean_bytes = statistics.mean(line["bytes_up"] + line["bytes_down"] for line in clients)
        rounds = next((hit[0] for hit in hits.values() if hit), None)
        rows.append((name, rounds, step_s, mean_bytes, *(hit[1] if hit else None for hit in hits.values())))
        about[name] = {
            "config_sha256": config.sha256(),
            "rounds_to_target": rounds,
            "best": max((score for _, score in at[MBIT[0]] if score is not None), default=None),
            "step_s": step_s,
            "bytes_per_client_round": mean_bytes,
            "virtual_seconds": {f"{mbit:g}": hit[1] if hit else None for mbit, hit in hits.items()},
        }
    columns = (
        words("Strategy"),
        whole("Rounds"),
        seconds("A step"),
        whole("Bytes, a client and round"),
        *(seconds(f"{m:g} Mbit/s") for m in MBIT),
    )
    note = f"Virtual time to a mean validation Dice of {given.target:g}; n/a: not reached in the rounds of the run."
    table = Table(f"Time to Dice {given.target:g}", columns, tuple((n, r, s, round(b), *t) for n, r, s, b, *t in rows), note)
    print_table(terminal(), table)
    given.output.mkdir(parents=True, exist_ok=True)
    machine = {"processor": platform.processor() or platform.machine(), "cpus": len(os.sched_getaffinity(0))}
    found = {
        "command": shlex.join(("python", "-m", "benchmarks.time_to_dice", *sys.argv[1:])),
        "target": given.target,
        "machine": machine,
        "strategies": about,
    }
    (given.output / "time_to_dice.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (given.output / "time_to_dice.md").write_text(f"{to_markdown(table)}\n\n{note}\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(guarded(main))
