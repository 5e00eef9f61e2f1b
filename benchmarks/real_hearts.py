"""Real hearts: the frozen model, FedIT, Rate-My-LoRA and full fine-tuning on ACDC by pathology, on the same patients; M&Ms as unseen vendors.

    python -m benchmarks.real_hearts --acdc /path/to/ACDC --mnms /path/to/MnMs [KEY=VALUE ...]

Runs configs/acdc_segmentation.yaml with each method; those that --runs holds already are not run again. The patients of M&Ms never train:
each of their vendors is scored with the global model. Writes benchmarks/results/real_hearts.{json,md}: no image or label of a patient.
What to expect: adaptation gains most on the right ventricle; a handful of unseen patients says that files are read and segmented, no more.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import sys
import tempfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from raylora import config as configuration
from raylora import launch
from raylora.cli import guarded
from raylora.cluster import session
from raylora.report.live import Live

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
RUNS = {
    "FedIT": ("strategy={name: fedit}",),
    "Rate-My-LoRA": ("strategy={name: rate_my_lora, temperature: 0.3}",),
    "full fine-tuning (FedAvg)": ("strategy={name: fedavg_full}", "training.lr=0.001"),
}
SHOWN = ("dice", "dice_lv", "dice_myo", "dice_rv", "hd95_mm", "lv_ef_error")
HEADS = ("", "Dice (95 % interval)", "LV", "MYO", "RV", "HD95 mm", "EF error", "MB up", "MB down", "s")


def main() -> None:
    """Run what is missing, then write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--acdc", type=Path, required=True)
    parser.add_argument("--mnms", type=Path, help="scored as unseen vendors, never trained on")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/real_hearts"))
    parser.add_argument("--runs", type=Path, help="keep the run folders here")
    given, overrides = parser.parse_known_args()
    sources = [{"dataset": "acdc", "root": str(given.acdc.resolve())}]
    sources += [{"dataset": "mnms", "root": str(given.mnms.resolve())}] if given.mnms else []
    data = [f"data.dataset={json.dumps(sources)}", f"clients.unseen={'[mnms]' if given.mnms else '[]'}", "tracking.uri=null"]
    kept = given.runs or Path(tempfile.mkdtemp(prefix="raylora-real-"))
    folders: dict[str, Path] = {}
    with session.opened(None):
        for name, options in RUNS.items():
            folders[name] = (kept / name.split(" ")[0].lower()).resolve()
            config = configuration.load(CONFIGS / "acdc_segmentation.yaml", [*data, *options, *overrides])
            if not (folders[name] / "summary.json").is_file():
                with Live() as live:
                    launch.run(config, folders[name], on_event=live)
    where = ("--acdc", "ACDC", *(("--mnms", "MNMS") if given.mnms else ()))  # not where the patients lie on this machine
    result = {"command": shlex.join(("python", "-m", "benchmarks.real_hearts", *where, *overrides)), **measured(folders)}
    given.output.parent.mkdir(parents=True, exist_ok=True)
    given.output.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    given.output.with_suffix(".md").write_text(markdown(result))
    print(markdown(result))


def measured(folders: dict[str, Path]) -> dict[str, Any]:
    """What the table says, from the run folders."""
    found = {name: json.loads((folder / "summary.json").read_text()) for name, folder in folders.items()}
    first = next(iter(found.values()))
    return {
        "machine": {"processor": platform.processor() or platform.machine(), "cpus": len(os.sched_getaffinity(0))},
        "versions": first["versions"],
        "code": first["code"],
        "patients": first["patients"],
        "frozen": {metric: first["final"][metric]["frozen"] for metric in SHOWN},
        "methods": {name: _line(summary) for name, summary in found.items()},
        "unseen": {
            "frozen": unseen(next(iter(folders.values())), "frozen", first["held_out"]),
            **{name: unseen(folder, "global", first["held_out"]) for name, folder in folders.items()},
        },
    }


def _line(summary: dict[str, Any]) -> dict[str, Any]:
    final = summary["final"]
    return {
        **{metric: final[metric]["mean"] for metric in SHOWN},
        "dice_ci95": final["dice"]["ci95"],
        "n": final["dice"]["n"],
        "bytes_up": summary["bytes_up"],
        "bytes_down": summary["bytes_down"],
        "seconds": summary["wall_seconds"],
    }


def unseen(folder: Path, model: str, clients: list[str]) -> dict[str, float]:
    """One model's Dice for every patient of the clients that never trained, as {"client": mean over its patients}."""
    rows = pq.read_table(folder / "cases.parquet").to_pylist()
    scores: dict[str, list[float]] = {client: [] for client in clients}
    for row in rows:
        chosen = (row["split"], row["model_of"], row["metric"], row["structure"]) == ("test", model, "dice", "all")
        if chosen and row["data_of"] in scores:
            scores[row["data_of"]].append(row["value"])
    return {client: sum(values) / len(values) for client, values in scores.items()}


def markdown(result: dict[str, Any]) -> str:
    """The tables as Markdown."""
    f = result["frozen"]
    lines = [f"| {' | '.join(HEADS)} |", "| --- |" + " --- |" * (len(HEADS) - 1)]
    scores = [f"{f[m]:.3f}" for m in SHOWN[:4]] + [f"{f[m]:.1f}" for m in SHOWN[4:]]
    lines.append(f"| frozen model | {' | '.join(scores)} | | | |")
    for name, m in result["methods"].items():
        interval = " ({:.3f} to {:.3f})".format(*m["dice_ci95"]) if m["dice_ci95"] else ""  # none for one patient a client
        scores = [f"{m['dice']:.3f}{interval}"] + [f"{m[k]:.3f}" for k in SHOWN[1:4]] + [f"{m[k]:.1f}" for k in SHOWN[4:]]
        costs = [f"{m['bytes_up'] / 1e6:.1f}", f"{m['bytes_down'] / 1e6:.1f}", f"{m['seconds']:.0f}"]
        lines.append(f"| {name} | {' | '.join([*scores, *costs])} |")
    n = next(iter(result["methods"].values()))["n"]
    lines += ["", f"ACDC: means over five clients (by pathology) of their test patients' means, n = {n} patients."]
    own = "; ".join(f"{name}: `{' '.join(options)}`" for name, options in RUNS.items())
    lines += [f"Beside configs/acdc_segmentation.yaml: {own}. Set by hand: one validation patient a client chooses nothing."]
    strangers = list(result["unseen"]["frozen"])
    if strangers:
        counts = [f"{client} (n = {result['patients'][client]['test']})" for client in strangers]
        lines += ["", f"| Dice on unseen vendors | {' | '.join(counts)} |", "| --- |" + " --- |" * len(strangers)]
        for name, by_client in result["unseen"].items():
            lines.append(f"| {'frozen model' if name == 'frozen' else name} | {' | '.join(f'{by_client[c]:.3f}' for c in strangers)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(guarded(main))
