"""The tables and docs/peers.png from what `python -m benchmarks.peers all` wrote: `python -m benchmarks.peers.plot [FOLDER]`.

All columns and what they are stand in FOLDER/peers.md, a short table and the marks in the README.

Nothing is copied by hand. Ratios are of medians; above 1 raylora is faster.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers import marks, memory
from benchmarks.peers.names import NAMES
from benchmarks.peers.workloads import WORKLOADS
from raylora.report.table import Cell, Column, Table, decimal, to_markdown, words

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "peers"
MARKS = ("<!-- peers: begin -->", "<!-- peers: end -->")
COMMAND = "`make peers` builds their pinned environments, `python -m benchmarks.peers all` measures seconds a round, all systems at the same losses:"
WORK = {
    "idle": "clients return at once",
    "W0": "almost nothing to compute",
    "W1": "all blocks adapted, batch 8",
    "W1s": "all blocks adapted, batch 2",
    "W2": "all 12 blocks, 289 tokens",
    "W3": "the last 2 of 12 blocks",
}


def percent(name: str) -> Column:
    return Column(name, text=lambda cell: f"{100 * float(cell):.0f} %")  # type: ignore[arg-type]


def _seconds(cell: Cell) -> str:
    value = float(cell)  # type: ignore[arg-type]
    return f"{value:.{2 if value >= 1 else 3}f}"


def in_words(found: dict[str, Any]) -> str:
    """One workload as a Markdown table: every system, raylora's ratio to it, its share of the machine's matrix rate."""
    systems = found["systems"]
    ours = systems.get("raylora")
    rows: list[tuple[Cell, ...]] = []
    for name in [name for name in NAMES if name in systems]:
        one = systems[name]
        ratio = one["seconds_per_round"] / ours["seconds_per_round"] if ours and name != "raylora" else None
        kind = f" ({one['kind']})" if "kind" in one else ""
        rows.append(
            (
                NAMES[name] + kind,
                one["seconds_per_round"],
                ratio,
                one["matrix_share"],
                one["seconds_to_first_round"],
                one["peak_pss_mb"],
                one["steps"],
            )
        )
    columns = (
        words("System"), Column("s a round", text=_seconds), decimal("raylora is faster by", 2), percent("of the matrix rate"),
        decimal("s to the first round", 1), decimal("peak PSS, MB", 0), decimal("steps", 0),
    )  # fmt: skip
    title = f"{found['workload']}, {found['clients']} clients, {found['rounds']} rounds, {found['repeats']} runs each, {found['workers']} workers"
    skipped = "".join(f"\n{NAMES[name]}: not measured, {why}" for name, why in found["skipped"].items())
    end = f"losses at most {found['largest_loss_difference']:.1g} apart (tolerance {found['tolerance']:g})"
    return f"{title}\n\n{to_markdown(Table(title, columns, tuple(rows)))}\n\n{end}{skipped}\n"


def table(several: Sequence[dict[str, Any]]) -> Table:
    """All workloads, a row each: seconds a round with shares of the matrix rate, ratios, first round and memory."""

    def of(found: dict[str, Any], name: str, key: str) -> float | None:
        return found["systems"].get(name, {}).get(key)

    def ratio(found: dict[str, Any], other: str, key: str, *, ours: str = "raylora") -> float | None:
        a, b = of(found, other, key), of(found, ours, key)
        return a / b if a is not None and b is not None else None

    def seconds(found: dict[str, Any], name: str) -> Cell:
        value, share = of(found, name, "seconds_per_round"), of(found, name, "matrix_share")
        if value is None:
            return None
        return _seconds(value) + ("" if share is None else f" ({100 * share:.0f} %)")

    shown = ("raylora", "bare", "pfl", "flower")
    columns = (
        words("Workload, clients"),
        *(Column(NAMES[name]) for name in shown),
        decimal("times the bare loop's speed", 2), decimal("one client at a time", 2), decimal("times pfl's", 2), decimal("times Flower's", 2),
        decimal("first round, of Flower's", 2), decimal("peak PSS, of Flower's", 2),
    )  # fmt: skip
    rows: list[tuple[Cell, ...]] = []
    for found in several:
        first, memory = (ratio(found, "raylora", key, ours="flower") for key in ("seconds_to_first_round", "peak_pss_mb"))
        rows.append(
            (
                f"{found['workload']}, {found['clients']}",
                *(seconds(found, name) for name in shown),
                ratio(found, "bare", "seconds_per_round"),
                ratio(found, "bare", "seconds_per_round", ours="raylora_unstacked"),
                ratio(found, "pfl", "seconds_per_round"),
                ratio(found, "flower", "seconds_per_round"),
                first,
                memory,
            )
        )
    return Table("Against other simulators", columns, tuple(rows))


def brief(several: Sequence[dict[str, Any]]) -> Table:
    """For the README: what a workload asks, seconds a round, and the ratios that decide."""
    full = table(several)
    dropped = ("one client at a time", "times pfl's")
    kept = [i for i, column in enumerate(full.columns) if column.name not in dropped]
    first, *others = (full.columns[i] for i in kept)
    rows = [(row[0], WORK[found["workload"]], *(row[i] for i in kept[1:])) for found, row in zip(several, full.rows, strict=True)]
    return Table("Seconds a round", (first, words("What"), *others), tuple(rows))


def note(several: Sequence[dict[str, Any]]) -> str:
    """What the table's figures are."""
    some = several[0]
    machine, repeats = some["machine"], min(found["repeats"] for found in several)
    gap = max(found["largest_loss_difference"] for found in several)
    works = [WORKLOADS[name] for name in dict.fromkeys(found["workload"] for found in several)]
    idle = "idle: clients that return what they are sent, 1.5 MB, at once; " if any(w.idle for w in works) else ""
    described = idle + "; ".join(
        f"{w.name}: {w.samples} volumes of {' x '.join(map(str, w.image))} a client, batch {w.batch}, {w.depth} blocks of width {w.width}, "
        f"LoRA of rank {w.rank} in {'all' if w.adapted == w.depth else f'the last {w.adapted}'}"
        for w in works
        if not w.idle
    )
    return (
        f"{described}. Every client trains an epoch in every round. "
        f"Seconds a round after the first (in brackets: the share of the machine's own measured rate at the workload's matrix product that the "
        f"round's arithmetic comes to; what raylora keeps or leaves out is counted as if it were computed), medians of at least {repeats} "
        f"interleaved runs. Then how many times as fast raylora is, "
        f"and with one client at a time and no cache; the first round's end (from the start of the process) and peak "
        f"memory of all processes as parts of Flower's. Every client's loss in every round was raylora's to {_up(gap):.0e}. "
        f"{_processors(several)}, {some['workers']} cores, torch {machine['torch']}, flwr {machine['flwr']}, pfl {machine['pfl']}, ray {machine['ray']}."
    )


def _processors(several: Sequence[dict[str, Any]]) -> str:
    """Of the rows, each of which comes from one machine: the processor of most, and those of the others with their names."""
    rows: dict[str, list[str]] = {}
    for found in several:
        rows.setdefault(found["machine"]["processor"], []).append(f"{found['workload']} with {found['clients']} clients")
    most, *others = sorted(rows, key=lambda name: -len(rows[name]))
    return most + "".join(f" ({' and '.join(rows[name])}: {name})" for name in others)


def _up(value: float) -> float:
    """To one digit, away from zero: a bound."""
    if not value:
        return value
    unit = 10.0 ** math.floor(math.log10(value))
    return math.ceil(value / unit - 1e-9) * unit


def read(folder: Path) -> list[dict[str, Any]]:
    """The results in the campaign's order."""
    found = [json.loads(path.read_text()) for path in folder.glob("*.json")]
    return sorted(found, key=lambda one: (list(WORKLOADS).index(one["workload"]), one["clients"]))


def write(folder: Path, *, public: bool = True) -> None:
    """The tables into the folder (`public`: the short one into the README as well, between its marks), the picture into docs or the folder."""
    several = read(folder)
    held = marks.table(several)
    reached = f"The marks that raylora is held to, raised where they were beaten by far:\n\n{to_markdown(held)}\n" if held.rows else ""
    text = f"{to_markdown(table(several))}\n\n{note(several)}\n\n{reached}"
    if public and memory.STORED.is_file():
        grown = json.loads(memory.STORED.read_text())
        text += f"\nMemory as the number of clients grows ({memory.COMMAND}, all processes, medians of {grown['repeats']} runs):\n\n"
        text += f"{to_markdown(memory.table(grown))}\n"
    (folder / "peers.md").write_text(text, encoding="utf-8")
    picture(several, (ROOT / "docs" if public else folder) / "peers.png")
    readme = ROOT / "README.md"
    page = readme.read_text(encoding="utf-8")
    if public and MARKS[0] in page:
        before, after = page.split(MARKS[0])[0], page.split(MARKS[1])[1]
        readme.write_text(f"{before}{MARKS[0]}\n{shown(several, reached)}{MARKS[1]}{after}", encoding="utf-8")


def shown(several: Sequence[dict[str, Any]], reached: str) -> str:
    """What stands in the README."""
    return (
        f"{COMMAND}\n\n{to_markdown(brief(several))}\n\n{how_to_read(several)}\n\n"
        "![Speed, time to the first round and memory beside the bare loop, pfl and Flower](docs/peers.png)\n\n"
        f"<details><summary>Marks</summary>\n\n{reached}\n</details>\n"
    )


def how_to_read(several: Sequence[dict[str, Any]]) -> str:
    """What stands below the short table."""
    some = several[0]
    return (
        "In brackets: what the round's arithmetic comes to, as a share of the machine's own matrix rate (above 100 % where raylora keeps features "
        "that the others compute again). First round: time from the start of the process to its end. Medians of at least "
        f"{min(found['repeats'] for found in several)} interleaved runs, {some['workers']} cores ({_processors(several)}); every column and "
        "what the workloads are: [benchmarks/results/peers/peers.md](benchmarks/results/peers/peers.md)."
    )


def picture(several: Sequence[dict[str, Any]], path: Path) -> None:
    """Rounds a second with the bare loop as 1, seconds to the first round, and memory; a group of bars a workload."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    from raylora.report.figures import LIGHT

    names = [name for name in NAMES if any(name in found["systems"] for found in several)]
    colours = dict(zip(names, LIGHT.lines, strict=False))
    labels = [f"{found['workload']}, {found['clients']}" for found in several]

    def speed(found: dict[str, Any], name: str) -> float:
        base = found["systems"].get("bare", {}).get("seconds_per_round", float("nan"))
        return base / found["systems"][name]["seconds_per_round"]

    panels = (
        ("Rounds a second, bare loop = 1", speed, "linear"),
        ("Seconds to the end of the first round", lambda found, name: found["systems"][name]["seconds_to_first_round"], "linear"),
        ("Peak memory of all processes, GB", lambda found, name: (found["systems"][name]["peak_pss_mb"] or float("nan")) / 1e3, "linear"),
    )
    figure, axes = plt.subplots(1, len(panels), figsize=(15, 4.4), layout="constrained")
    width = 0.8 / len(names)
    for panel, (title, value, scale) in zip(axes, panels, strict=True):
        for place, name in enumerate(names):
            here = [(i, value(found, name)) for i, found in enumerate(several) if name in found["systems"]]
            positions = [i + (place - (len(names) - 1) / 2) * width for i, _ in here]
            bars = panel.bar(positions, [v for _, v in here], width, color=colours[name], label=NAMES[name])
            if scale == "linear" and title.startswith("Rounds") and name != "bare":  # which is 1 by definition
                panel.bar_label(bars, fmt="%.2f", fontsize=5.5, padding=1)
        if title.startswith("Rounds"):
            panel.axhline(1.0, color="#1f2328", lw=0.6)
        panel.set(title=title, yscale=scale)
        panel.set_xticks(range(len(labels)), labels, fontsize=8)
        panel.spines[["top", "right"]].set_visible(False)
    axes[0].legend(fontsize=7, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)


if __name__ == "__main__":
    given = Path(sys.argv[1]) if len(sys.argv) > 1 else RESULTS
    write(given, public=given == RESULTS)
