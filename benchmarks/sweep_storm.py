"""`raylora sweep` killed at random moments: the same command completes it, and every trial is what it would have been without the kill.

    make sweep_storm                                    # grid, random and ASHA, three kills each, and two nodes; six minutes
    python -m benchmarks.sweep_storm --search grid --kills 1 --no-undisturbed
    python -m benchmarks.sweep_storm --search           # two nodes alone

Four trials of a tiny experiment, two at a time, on a Ray that each start makes for itself. SIGKILL goes to the command's process after a
drawn number of new lines in the ledger and a drawn part of a second; then the same command is started again. At the end each trial's
objective, test score, rounds and adapters' hashes must be those of a plain run of its configuration (stopped at the same round where it was
pruned), and what the ledger said at a kill it must still say. Grid and random: the rows of an undisturbed sweep as well (with ASHA which
trials are pruned depends on timing). Then the grid once on a cluster of two nodes (Ray's own test cluster), undisturbed: the same again, each
trial's clients on both nodes by its record. Writes benchmarks/results/sweep_storm.json. What to expect: all the same.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from benchmarks import small
from raylora import config as configuration
from raylora import planning
from raylora.sweep.state import summary_of
from raylora.sweep.trial import RunningTrial

ROUNDS, METRIC = 6, "likelihood"
RATES = [0.03, 0.0003, 0.029, 0.00029]  # like and unlike: whichever is better, some are pruned
SEARCHES: Mapping[str, Mapping[str, Any]] = {
    "grid": {"space": {"lora.rank": {"grid": [1, 2]}}, "seeds": [0, 1]},
    "random": {"space": {"training.lr": {"loguniform": [1e-4, 0.1]}}, "search": {"kind": "random", "trials": 4, "seed": 1}},
    "asha": {"space": {"training.lr": {"grid": RATES}}, "scheduler": {"kind": "asha", "reduction": 2}},
}
TRIALS = 4  # of each search
LINES = 12  # of the ledger after which a sweep surely goes on, pruned or not
START_S = 240  # at most, until a line is written


def write(folder: Path, search: str, data: Mapping[str, Any], **placement: Any) -> Path:
    """The sweep's file and its base beside it."""
    folder.mkdir(parents=True)
    base = small.config("stateless", ROUNDS, data, placement=placement)
    (folder / "base.yaml").write_text(configuration.dump(base))
    values = {"name": search, "base": "base.yaml", "objective": {"metric": METRIC}, **SEARCHES[search], "limits": {"concurrent": 2}}
    (folder / "sweep.yaml").write_text(yaml.safe_dump(values))
    return folder / "sweep.yaml"


def command(path: Path, out: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "raylora", "sweep", str(path), "--output", str(out), "--json", *more]


def complete(path: Path, out: Path, *more: str) -> dict[str, Any]:
    """Run it to its end: what it says then."""
    done = subprocess.run(command(path, out, *more), capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the sweep ended with {done.returncode}: {done.stderr[-2000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def kill(path: Path, out: Path, lines: int, more_s: float) -> str:
    """Start it, and kill it after so many new lines of the ledger and so many seconds; the ledger then."""
    ledger = out / "ledger.jsonl"

    def written() -> str:
        text = ledger.read_text() if ledger.exists() else ""
        return text[: text.rfind("\n") + 1]

    began, until = written().count("\n"), time.monotonic() + START_S
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(command(path, out), stdout=subprocess.DEVNULL, stderr=said)
        while process.poll() is None and written().count("\n") < began + lines and time.monotonic() < until:
            time.sleep(0.02)
        time.sleep(more_s)
        if process.poll() is not None or time.monotonic() > until:
            process.kill()
            said.seek(0)
            raise RuntimeError(f"the sweep was over, or hung, before it could be killed ({process.poll()}): {said.read()[-2000:]}")
        process.send_signal(signal.SIGKILL)
        process.wait()
    return written()


def differences(found: Mapping[str, Any], out: Path) -> list[str]:
    """Trials that are not what a plain run of their written configuration gives."""
    counts = found.get("counts", {})
    wrong = [f"{counts[key]} trials are {key}" for key in ("failed", "unfinished") if counts.get(key)]
    for row in found["trials"]:
        folder = out / "plain" / str(row["number"])
        folder.mkdir(parents=True)
        config = configuration.load(out / row["folder"] / "config.yaml")
        until = row["rounds"] if row["status"] == "pruned" else None
        alone = RunningTrial(planning.make_plan(config), folder, METRIC, small.in_process, until=until)
        while (report := alone.advance()).status == "running":
            pass
        summary = summary_of(folder)
        block = summary.get("final", {}).get("balanced_accuracy")
        plain = {
            "status": report.status,
            "rounds": report.round,
            "objective": report.objective,
            "adapter_sha256": summary.get("adapter_sha256"),
            "test": block and block["mean"],
        }
        wrong += [f"trial {row['number']}: {key} {row[key]} instead of {value}" for key, value in plain.items() if row[key] != value]
    return wrong


def storm(search: str, kills: int, draw: np.random.Generator, folder: Path, data: Mapping[str, Any], undisturbed: bool) -> dict[str, Any]:
    """One sweep through so many kills."""
    path, out = write(folder, search, data, cpus_per_client=0.25, clients_per_actor=4), folder / "out"
    moments, lost = [], []
    for _ in range(kills):
        lines, more_s = int(draw.integers(1, max(2, LINES // kills))), float(draw.uniform(0, 0.5))
        before = kill(path, out, lines, more_s)
        moments.append({"new_lines": lines, "seconds_more": round(more_s, 2), "lines": before.count("\n")})
        lost.append(before)
    found = complete(path, out)
    ledger = (out / "ledger.jsonl").read_text()
    reports = [(line["number"], line["round"]) for text in ledger.splitlines() if (line := json.loads(text))["kind"] == "report"]
    wrong = differences(found, out)
    wrong += [
        f"the ledger of kill {number} is not the beginning of the last" for number, text in enumerate(lost) if not ledger.startswith(text)
    ]
    wrong += [] if len(found["trials"]) == TRIALS else [f"{len(found['trials'])} trials instead of {TRIALS}"]
    wrong += ["a round was reported twice"] if len(set(reports)) != len(reports) else []
    if undisturbed and search != "asha" and complete(path, folder / "undisturbed")["trials"] != found["trials"]:
        wrong.append("an undisturbed sweep has other rows")
    return {"search": search, "kills": moments, "counts": found["counts"], "differences": wrong}


def on_two_nodes(folder: Path, data: Mapping[str, Any]) -> dict[str, Any]:
    """The grid on a cluster whose nodes have a CPU each."""
    from ray.cluster_utils import Cluster

    path, out = write(folder, "grid", data, cpus_per_client=1.0, clients_per_actor=2), folder / "out"
    node = {"num_cpus": 1, "object_store_memory": 80 << 20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    try:
        cluster.add_node(**node)
        found = complete(path, out, "--address", cluster.address)
    finally:
        cluster.shutdown()
    wrong, nodes = differences(found, out), []
    wrong += [] if len(found["trials"]) == TRIALS else [f"{len(found['trials'])} trials instead of {TRIALS}"]
    for row in found["trials"]:
        nodes.append(len({actor["node"] for actor in summary_of(out / row["folder"])["actors"]}))
        wrong += [f"trial {row['number']}: its clients were on {nodes[-1]} nodes by its record"] if nodes[-1] != 2 else []
    return {"search": "grid", "nodes_of_each_trial": nodes, "counts": found["counts"], "differences": wrong}


def main(words: Sequence[str] | None = None) -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--search", choices=SEARCHES, nargs="*", default=list(SEARCHES))
    parser.add_argument("--kills", type=int, default=3, help="of each sweep")
    parser.add_argument("--no-cluster", action="store_true", help="leave out the cluster of two nodes")
    parser.add_argument("--no-undisturbed", action="store_true", help="leave out the undisturbed sweep")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=json.loads, default=small.DATA, help="the data section, as JSON")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "sweep_storm.json")
    options = parser.parse_args(words)
    draw, sweeps = np.random.default_rng(options.seed), []
    with tempfile.TemporaryDirectory(prefix="raylora-storm-") as folder:
        for search in options.search:
            sweeps.append(storm(search, options.kills, draw, Path(folder) / search, options.data, not options.no_undisturbed))
            print(json.dumps(sweeps[-1]), file=sys.stderr, flush=True)
        cluster = None if options.no_cluster else on_two_nodes(Path(folder) / "cluster", options.data)
    wrong = [said for sweep in [*sweeps, *([cluster] if cluster else [])] for said in sweep["differences"]]
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps({"seed": options.seed, "same": not wrong, "sweeps": sweeps, "cluster": cluster}, indent=1) + "\n")
    print(f"{sum(len(sweep['kills']) for sweep in sweeps)} kills, {'; '.join(wrong) or 'all the same'}")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
