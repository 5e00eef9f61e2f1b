"""Every ready stress campaign, with what came of it in one file each.

    make stress                                         # all five of configs/stress, at their size; an hour on two cores with AVX-512
    python -m benchmarks.stress_pages byzantine         # one of them
    python -m benchmarks.stress_pages --override seeds=[0]

Runs `raylora stress` on each into runs/stress/ (where each has its page, stress.html; the same command goes on where it was left) and writes
benchmarks/results/stress/<name>.md: its tables, and its findings in the page's words. What to expect: that the plain mean fails where a
hospital lies and robust reductions hold; of the rest, whatever comes out.
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

from raylora import launch_stress
from raylora.cli import guarded
from raylora.core.errors import InputError
from raylora.report.live import Live
from raylora.report.stress import Campaign
from raylora.report.table import to_markdown

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ROOT / "configs" / "stress"
RESULTS = Path(__file__).resolve().parent / "results" / "stress"


def ready() -> list[str]:
    """The names of the shipped campaigns."""
    return sorted(path.stem for path in CONFIGS.glob("*.yaml"))


def written(found: Campaign, command: str, minutes: float, cpus: int) -> str:
    """A campaign as Markdown."""
    said = [
        f"# {found.name}",
        f"`{command}`: {len(found.ended)} experiments, {minutes:.0f} minutes on {cpus} cores ({platform.machine()}).",
    ]
    said.append("\n".join(f"- {sentence}" for sentence in (*found.findings(), *found.remarks)))
    for table in (found.robustness(), found.levels_table(), found.pairs_table()):
        if table.rows:
            said += [f"## {table.title}", to_markdown(table), table.note]
    return "\n\n".join(said) + "\n"


def main() -> None:
    """Run what is missing of each, then write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which ones: {', '.join(ready())} (default: all)")
    parser.add_argument("--override", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "stress", metavar="DIR")
    parser.add_argument("--output", type=Path, default=RESULTS, metavar="DIR")
    given = parser.parse_args()
    if unknown := sorted(set(given.names) - set(ready())):
        raise InputError(f"expected names of ready campaigns ({', '.join(ready())}), found {', '.join(unknown)}")
    given.output.mkdir(parents=True, exist_ok=True)
    for name in given.names or ready():
        began = time.monotonic()
        with Live() as live:
            _, found = launch_stress.stress(CONFIGS / f"{name}.yaml", given.override, given.runs / name, on_event=live)
        command = shlex.join(("raylora", "stress", f"configs/stress/{name}.yaml", *given.override))
        text = written(found, command, (time.monotonic() - began) / 60, os.cpu_count() or 1)
        (given.output / f"{name}.md").write_text(text, encoding="utf-8")
        print(f"{given.output / name}.md")


if __name__ == "__main__":
    sys.exit(guarded(main))
