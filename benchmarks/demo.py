"""`make demo`: both methods and FedIT on the synthetic four-vendor cohort, then the comparison.

Runs configs/demo_segmentation.yaml (FedIT, Rate-My-LoRA) and configs/demo_disease.yaml (FedIT, Med-DualLoRA) on one Ray.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from raylora import config as configuration
from raylora import launch, run_folder
from raylora.cli import guarded
from raylora.cluster import session
from raylora.report import compare, tables
from raylora.report.live import Live

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
EQUAL = "strategy.weights=uniform"  # every hospital counts the same, as in the score, the mean over hospitals
RUNS = (
    ("demo_segmentation", "fedit", (EQUAL,)),
    ("demo_segmentation", "rate_my_lora", (EQUAL, "strategy.temperature=0.5")),
    ("demo_disease", "fedit", ()),
    ("demo_disease", "med_duallora", ()),
)


def main() -> None:
    """Run, compare, and say where everything is."""
    out, started = run_folder.free("demo"), time.perf_counter()
    folders = []
    with session.opened(None):
        for name, strategy, options in RUNS:
            overrides = [f"name={name}_{strategy}", f"strategy.name={strategy}", *options, *sys.argv[1:]]
            config = configuration.load(CONFIGS / f"{name}.yaml", overrides)
            folder = (out / config.name).resolve()
            with Live() as live:
                summary = launch.run(config, folder, on_event=live)
            tables.show_summary(summary)
            folders.append(folder)
    found = compare.compare(folders)
    found.show()
    page = out / "compare.html"
    found.write_html(page)
    print(
        f"\n{time.perf_counter() - started:.0f} s. The comparison is {page}; each run's report.html, pictures and adapters are in {out}/<run>/."
    )


if __name__ == "__main__":
    sys.exit(guarded(main))
