"""The tables and the picture of `benchmarks.strategies`, from its run folders; nothing is copied by hand."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from raylora.metrics.matrix import PRIMARY
from raylora.report.groups import Group
from raylora.report.pairs import Pair, SelfTest, pairs_of, self_test
from raylora.report.runs import read_run
from raylora.report.scores import Score, frozen_score, score_of
from raylora.report.table import (
    Cell,
    Estimate,
    Table,
    decimal,
    estimate,
    p_value,
    print_table,
    seconds,
    signed,
    size,
    terminal,
    to_csv,
    to_markdown,
    words,
)
from raylora.report.words import metric_words

ROOT = Path(__file__).resolve().parent.parent
COMMAND = "python -m benchmarks.strategies"
BASELINE = "fedit"
BOUNDS = ("local", "centralised")  # what federation is compared with; in another colour
REPLICATES = 2000
MARKS = ("<!-- strategies: begin -->", "<!-- strategies: end -->")


@dataclass(frozen=True)
class Row:
    """One strategy on one task."""

    entry: str
    study: dict[str, Any]
    score: Score
    pair: Pair | None  # with FedIT


def write(tasks: Sequence[str], entries: Sequence[str], folder: Path, output: Path, *, public: bool) -> None:
    """Tables of all tasks into `output`; with `public` the picture and the short form in docs/strategies.md as well."""
    output.mkdir(parents=True, exist_ok=True)
    short: list[str] = []
    made: dict[str, list[Row]] = {}
    for task in tasks:
        groups, studies = [], {}
        for entry in entries:
            studies[entry] = json.loads((folder / task / entry / "study.json").read_text())
            groups.append(Group(label=entry, settings={}, runs=tuple(read_run(folder / path) for path in studies[entry]["runs"])))
        metric = PRIMARY[task]
        base = next(group for group in groups if group.label == BASELINE)
        a_a = self_test(base, metric)
        pairs = {
            name: pair
            for pair in pairs_of(groups, metric, a_a, 0, REPLICATES, against=base)
            for name in (pair.a, pair.b)
            if name != BASELINE
        }
        rows = [Row(g.label, studies[g.label], score_of(g, metric, 0, REPLICATES), pairs.get(g.label)) for g in groups]
        frozen = frozen_score(base, metric, 0, REPLICATES)
        full = table(task, rows, frozen, a_a.sentence)
        print_table(terminal(), full)
        (output / f"{task}.csv").write_text(to_csv(full), encoding="utf-8")
        (output / f"{task}.md").write_text(to_markdown(full) + f"\n\n{full.note}\n", encoding="utf-8")
        about = {
            "command": COMMAND,
            "machine": {"processor": platform.processor() or platform.machine(), "cpus": len(os.sched_getaffinity(0))},
            "versions": base.runs[0].summary["versions"],
            "data_sha256": base.runs[0].summary["data_sha256"],
            "patients": base.runs[0].summary["patients"],
            "metric": metric,
            "a_a": asdict(a_a),
            "frozen": plain(frozen),
            "rows": [
                {"entry": row.entry, "study": row.study, "score": plain(row.score), "pair": row.pair and asdict(row.pair)} for row in rows
            ],
        }
        (output / f"{task}.json").write_text(json.dumps(about, indent=1, default=str) + "\n", encoding="utf-8")
        made[task] = rows
        short += [
            f"<details><summary>{task.capitalize()}: all rows</summary>",
            "",
            to_markdown(brief(task, rows, frozen)),
            "",
            how_to_read(a_a),
            "",
            "</details>",
            "",
        ]
    picture(made, (ROOT / "docs" if public else output) / "strategies.png")
    if public:
        page = ROOT / "docs" / "strategies.md"
        text = page.read_text(encoding="utf-8")
        before, after = text.split(MARKS[0])[0], text.split(MARKS[1])[1]
        page.write_text(before + "\n".join([MARKS[0], *short, MARKS[1]]) + after, encoding="utf-8")


def plain(score: Score) -> dict[str, Any]:
    """A score without its bootstrap replicates."""
    return {key: value for key, value in asdict(score).items() if key != "replicates"}


def table(task: str, rows: Sequence[Row], frozen: Score, a_a: str) -> Table:
    """Every strategy, the best in-client score first."""
    columns = (
        words("Strategy"), decimal("lr", 4), estimate("In-client [95 %]"), estimate("Cross-client [95 %]"), signed("Minus FedIT [95 %]"),
        p_value("p, Holm"), words("Verdict"), size("Up"), size("Down"), seconds("CPU time"),
    )  # fmt: skip
    lines: list[tuple[Cell, ...]] = [("frozen model", None, frozen.in_client, None, None, None, "", None, None, None)]
    for row in sorted(rows, key=lambda row: -(row.score.in_client.value or 0.0)):
        s = row.score
        at_edge = "*" if row.study["edge"] else ""
        lines.append(
            (
                row.entry + at_edge,
                row.study["lr"],
                s.in_client,
                s.cross_client,
                *difference(row),
                s.bytes_up,
                s.bytes_down,
                row.study["cpu_seconds"],
            )
        )
    some = rows[0].study
    note = (
        f"{metric_words(PRIMARY[task])} on test patients, the primary metric: means over {len(some['runs'])} seeds, clients and a client's test patients. "
        f"Of {len(some['tried'])} learning rates each, the one with the best {some['chosen_by']} on validation patients (seed 0); *: it is the smallest or "
        f"the largest tried. p: paired test against FedIT on the same patients, Holm over these rows. Bytes of a whole run; CPU time of one run, "
        f"which has one thread. {a_a}"
    )
    return Table(f"Strategies on {task}", columns, tuple(lines), note)


def difference(row: Row) -> tuple[Cell, Cell, str]:
    """(the row minus FedIT, its p, what may be said)."""
    pair = row.pair
    if pair is None or pair.difference is None:
        return None, None, ""
    sign = 1.0 if pair.a == row.entry else -1.0
    low, high = sorted(sign * v for v in pair.ci95) if pair.ci95 else (None, None)
    verdict = ("better" if sign > 0 else "worse") if pair.verdict == "A better" else pair.verdict
    return Estimate(sign * pair.difference, low, high, pair.n), pair.p_holm, verdict


def brief(task: str, rows: Sequence[Row], frozen: Score) -> Table:
    """Five columns of the table, for docs/strategies.md."""
    full = table(task, rows, frozen, "")
    kept = [0, 2, 4, 6]
    total = size("Bytes")
    lines = tuple((*[line[i] for i in kept], None if line[7] is None else line[7] + line[8]) for line in full.rows)  # type: ignore[operator]
    return Table(full.title, (*[full.columns[i] for i in kept], total), lines, "")


def how_to_read(a_a: SelfTest) -> str:
    """What stands below a short table."""
    limit = "n/a" if a_a.resolvable is None else f"{a_a.resolvable:.3f}"
    return (
        "*: the learning rate that validation patients chose is the smallest or the largest tried, so that another one might do better. Verdict: "
        f"of paired tests after Holm over these rows; not resolvable: FedIT differs from itself by as much under other seeds ({limit})."
    )


def picture(made: dict[str, list[Row]], path: Path) -> None:
    """Score against bytes, a panel a task; the names stand in a column in the order of the scores, each with a line to its point."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(made), figsize=(7.2 * len(made), 4.8), layout="constrained", squeeze=False)
    for panel, (task, rows) in zip(axes[0], made.items(), strict=True):
        shown = sorted((row for row in rows if row.score.in_client.value is not None), key=lambda row: row.score.in_client.value or 0.0)
        for place, row in enumerate(shown):
            value, x = row.score.in_client, row.score.bytes_total / 1e6
            own = "#c1666b" if row.entry in BOUNDS else "#2a6f97"
            error = None if value.low is None else [[value.value - value.low], [value.high - value.value]]
            panel.errorbar(x, value.value, yerr=error, fmt="o", ms=4, lw=0.8, color=own, ecolor="#dfe6ea", zorder=2)
            panel.annotate(
                f"{row.entry}  {value.value:.3f}",
                (x, value.value),
                xytext=(1.06, (place + 0.5) / len(shown)),
                textcoords="axes fraction",
                fontsize=7,
                va="center",
                color=own,
                arrowprops={"arrowstyle": "-", "lw": 0.4, "color": "#8aa0ad", "shrinkA": 1, "shrinkB": 2, "relpos": (0, 0.5)},
            )
        panel.set(title=task.capitalize(), xscale="log", xlabel="MB sent in a run, up and down", ylabel=metric_words(PRIMARY[task]))
        panel.grid(alpha=0.2)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)
