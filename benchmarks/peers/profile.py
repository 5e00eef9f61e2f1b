"""What binds: where a round's CPU time goes, operator by operator, with clients stacked and one at a time.

    python -m benchmarks.peers.profile [--clients 32] [--output FILE]

One process does what one of two actors does for 64 clients of W1 and W1s, under torch's profiler, three rounds after a first one that is not
looked at. Products (in forward and backward passes), attention, normalisation and activations are work that every system has to do; moving
and element-wise sums are what a step adds to it, "between" is the time outside of operators (Python, files, checks). Writes
benchmarks/results/peers_profile.json and prints the table. What to expect: stacked, most of the time is in products.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks import small
from benchmarks.peers import gemm, measure, prepare
from benchmarks.peers.settings import config as config_of
from benchmarks.peers.workloads import WORKLOADS
from raylora import experiment, planning
from raylora.report.table import Cell, Column, Table, decimal, to_markdown, words

ROUNDS = 3
GROUPS = {  # the first group one of whose words is in an operator's name
    "products": ("mm", "mv", "conv"),
    "attention": ("attention", "softmax"),
    "normalisation": ("norm",),
    "activation": ("gelu",),
    "moving": ("copy", "cat", "index", "gather", "empty", "clone", "stack", "contiguous", "fill", "zero", "resize"),
}
ORDER = (*GROUPS, "element-wise", "between")


def group(operator: str) -> str:
    """The group of an operator (`aten::addmm`)."""
    if "attention" in operator:
        return "attention"
    return next((name for name, parts in GROUPS.items() if any(part in operator for part in parts)), "element-wise")


def look(workload: str, clients: int, settings: Sequence[str], folder: Path) -> dict[str, float]:
    """Seconds a round in each group, and in all."""
    work = WORKLOADS[workload]
    config = config_of(folder, workload, ROUNDS + 1, (f"data.cache={folder}/cache", *settings))
    spent: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as out:
        profiler = profile(activities=[ProfilerActivity.CPU], acc_events=True)
        began = 0.0
        for event in experiment.run_experiment(planning.make_plan(config), Path(out), small.in_process):
            if event["event"] == "round" and event["round"] == 0:
                profiler.start()
                began = time.perf_counter()
            if event["event"] == "round" and event["round"] == ROUNDS:
                wall = time.perf_counter() - began
                profiler.stop()
                break
    for operator in profiler.key_averages():
        spent[group(operator.key)] += operator.self_cpu_time_total / 1e6
    spent["between"] = max(0.0, wall - sum(spent.values()))
    steps = clients * work.steps
    return {"ms_a_step": 1e3 * wall / ROUNDS / steps, **{name: 1e3 * spent[name] / ROUNDS / steps for name in ORDER}}


def table(found: dict[str, dict[str, float]]) -> str:
    columns = (
        words("Workload"),
        decimal("ms a client's step", 2),
        *(Column(name, text=lambda cell: f"{float(cell):.2f}") for name in ORDER),
    )  # type: ignore[arg-type]
    rows: list[tuple[Cell, ...]] = [(name, one["ms_a_step"], *(one[key] for key in ORDER)) for name, one in found.items()]
    return to_markdown(Table("What binds", columns, tuple(rows)))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--output", type=Path, default=Path(__file__).parents[1] / "results" / "peers_profile.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found, ideal = {}, {}
    for workload in ("W1", "W1s"):
        work = WORKLOADS[workload]
        with tempfile.TemporaryDirectory(prefix="profile-") as scratch:
            folder = Path(scratch) / "all"
            prepare.write(folder, workload, options.clients, ROUNDS + 1, 1)
            kinds = {
                "stacked": measure.raylora_settings(work, options.clients, 1),
                "one at a time": ("training.stack=1", "training.cache=off"),
            }
            for kind, settings in kinds.items():
                found[f"{workload}, {kind}"] = look(workload, options.clients, settings, folder)
        rate = gemm.rate(work.batch * work.tokens, work.width, 4 * work.width, 1)
        ideal[workload] = 1e3 * work.batch * work.flops() / rate
    kept = {"clients": options.clients, "ms_a_step": found, "ms_of_its_products_at_the_machine_s_rate": ideal, "torch": torch.__version__}
    options.output.write_text(json.dumps({**kept, "cpus": os.cpu_count()}, indent=1) + "\n", encoding="utf-8")
    print(table(found))
    print("\n".join(f"{name}: {value:.2f} ms for a step's products at this machine's rate" for name, value in ideal.items()))


if __name__ == "__main__":
    main()
