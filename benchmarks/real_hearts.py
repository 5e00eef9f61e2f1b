"""Real hearts: the frozen model, FedIT, Rate-My-LoRA and full fine-tuning on ACDC by pathology, on the same patients; M&Ms as unseen vendors.

    python -m benchmarks.real_hearts --acdc /path/to/ACDC [--mnms /path/to/MnMs] [--output benchmarks/results/real_hearts]

About 10 minutes a run on two cores. Writes FOLDER.json and FOLDER.md; no image or label of a patient goes into them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any

from raylora import config as configuration
from raylora import launch
from raylora.cli import guarded
from raylora.cluster import driver
from raylora.report.live import Live

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
RUNS = {
    "FedIT": ("strategy={name: fedit}",),
    "Rate-My-LoRA": ("strategy={name: rate_my_lora, temperature: 0.05}",),
    "full fine-tuning (FedAvg)": ("strategy={name: fedavg_full}", "training.lr=0.001"),
}
SHOWN = ("dice", "dice_lv", "dice_myo", "dice_rv", "hd95_mm", "lv_ef_error")


def main() -> None:
    """Run what is missing, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--acdc", type=Path, required=True)
    parser.add_argument("--mnms", type=Path)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/real_hearts"))
    parser.add_argument("--runs", type=Path, help="keep the run folders here")
    given, overrides = parser.parse_known_args()
    kept = given.runs or Path(tempfile.mkdtemp(prefix="raylora-real-"))
    found: dict[str, Any] = {}
    with driver.session(None):
        for name, options in RUNS.items():
            folder = (kept / f"acdc_{len(found)}").resolve()
            config = configuration.load(CONFIGS / "acdc_segmentation.yaml", [f"data.root={given.acdc.resolve()}", "tracking.uri=null", *options, *overrides])
            if not (folder / "summary.json").is_file():
                with Live() as live:
                    launch.run(config, folder, on_event=live)
            found[name] = json.loads((folder / "summary.json").read_text())
    given.output.parent.mkdir(parents=True, exist_ok=True)
    table = {name: _line(summary) for name, summary in found.items()}
    first = next(iter(found.values()))
    result = {
        "command": "python -m benchmarks.real_hearts --acdc ACDC",
        "machine": {"processor": platform.processor() or platform.machine(), "cpus": len(os.sched_getaffinity(0))},
        "versions": first["versions"],
        "patients": first["patients"],
        "frozen": {metric: first["final"][metric]["frozen"] for metric in SHOWN},
        "methods": table,
    }
    given.output.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    given.output.with_suffix(".md").write_text(markdown(result))
    print(markdown(result))


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


def markdown(result: dict[str, Any]) -> str:
    """The table as Markdown."""
    lines = ["| | Dice (95 % interval) | LV | MYO | RV | HD95 mm | EF error | MB up | MB down | s |", "| --- |" + " --- |" * 9]
    f = result["frozen"]
    lines.append(f"| frozen | {f['dice']:.3f} | {f['dice_lv']:.3f} | {f['dice_myo']:.3f} | {f['dice_rv']:.3f} | {f['hd95_mm']:.1f} | {f['lv_ef_error']:.1f} | | | |")
    for name, m in result["methods"].items():
        low, high = m["dice_ci95"]
        lines.append(
            f"| {name} | {m['dice']:.3f} ({low:.3f} to {high:.3f}) | {m['dice_lv']:.3f} | {m['dice_myo']:.3f} | {m['dice_rv']:.3f} | {m['hd95_mm']:.1f} "
            f"| {m['lv_ef_error']:.1f} | {m['bytes_up'] / 1e6:.1f} | {m['bytes_down'] / 1e6:.1f} | {m['seconds']:.0f} |"
        )
    n = next(iter(result["methods"].values()))["n"]
    return "\n".join(lines) + f"\n\nMean over five clients (by pathology) of their test patients' means, n = {n} patients.\n"


if __name__ == "__main__":
    sys.exit(guarded(main))
