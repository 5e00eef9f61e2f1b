"""The tables of one run: its scores, its clients, its record."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

from raylora.metrics.matrix import PRIMARY, metric_names
from raylora.report.groups import value_text
from raylora.report.marks import marks_of, stamped
from raylora.report.runs import Run
from raylora.report.table import (
    LOWER,
    Table,
    bytes_text,
    decimal,
    estimate,
    estimate_of,
    interval_words,
    print_table,
    seconds_text,
    signed,
    terminal,
    whole,
    without_interval,
    words,
)
from raylora.report.words import inside, lower_is_better, metric_words

LEFT_OUT = ("auc_tuned", "volume_ml", "volume_true_ml")  # the same as auc; sizes of hearts, not scores

Final = Mapping[str, Mapping[str, Any]]


def reported_metrics(task: str) -> list[str]:
    """The metrics of `final` that are scores, the primary one first."""
    return [name for name in metric_names(task) if not name.startswith(LEFT_OUT)]


def final_table(final: Final, task: str) -> Table:
    """In-client scores on test patients beside those of the frozen model."""
    rows = []
    for metric in reported_metrics(task):
        block = final.get(metric)
        if block:
            mean, frozen = block.get("mean"), block.get("frozen")
            change = None if mean is None or frozen is None else mean - frozen
            own = (block.get("per_client") or {}).values()
            lacking = sum(value is None for value in own)  # a client may lack a class, or what a threshold is tuned on
            name = metric_words(metric, arrow=True) + (f" ({len(own) - lacking} of {len(own)} clients)" if lacking else "")
            rows.append((name, estimate_of(block), frozen, change, block.get("pooled"), block.get("n")))
    columns = (
        words("Metric"),
        estimate("Mean [95 %]"),
        decimal("Frozen"),
        signed("Change"),
        decimal("Pooled", essential=False),
        whole("n"),
    )
    note = "Means over clients of each one's own model on its own test patients (n), "
    note += "at 0.5 and at the threshold chosen on validation" if task == "disease" else "on the native grid"
    note += "; frozen: before training. Pooled: over all patients."
    note += without_interval(row[1] for row in rows)
    if any(lower_is_better(metric) for metric in reported_metrics(task)):
        note += f" {LOWER}"
    return Table("Test scores, in-client", columns, tuple(rows), note, marked=frozenset({0} if rows else ()))


def client_table(final: Final, task: str, clients: Sequence[str], patients: Mapping[str, Mapping[str, int]]) -> Table:
    """The main scores of each client, beside its patients ({client: {part: how many}}; empty: not known)."""
    shown = [m for m in reported_metrics(task) if m in final and not m.startswith(("hd95_mm_", "volume"))]
    parts = {"train": "Trained on", "validation": "Validation", "test": "Test patients"} if patients else {}
    rows = []
    for client in clients if shown else ():
        counts = [patients.get(client, {}).get(part) for part in parts]
        rows.append((client, *counts, *((final[m].get("per_client") or {}).get(client) for m in shown)))
    columns = (words("Client"), *map(whole, parts.values()), *(decimal(metric_words(m, arrow=True)) for m in shown))
    return Table("Test scores by client", columns, tuple(rows))


def dataset_table(summary: Mapping[str, Any]) -> Table:
    """The main scores by data set, where a run has several."""
    found, task = summary.get("by_dataset") or {}, summary["task"]
    shown = [m for m in reported_metrics(task) if m in found and not m.startswith(("hd95_mm_", "volume"))]
    first = found.get(PRIMARY[task]) or {}
    rows = []
    for name, block in sorted(first.items()):
        rows.append((name, block.get("n"), block.get("frozen"), *((found[m].get(name) or {}).get("mean") for m in shown)))
    columns = (
        words("Data set"),
        whole("n"),
        decimal(f"{metric_words(PRIMARY[task])}, frozen"),
        *(decimal(metric_words(m, arrow=True)) for m in shown),
    )
    note = "Each client's own model on its own test patients, over all test patients (n) of a data set."
    return Table("Test scores by data set", columns if rows else (), tuple(rows), note)


def record_table(summary: Mapping[str, Any]) -> Table:
    """Hashes, versions, machines: what is needed to make this run again."""
    rows: list[tuple[str, str]] = [(key, str(summary[key])) for key in ("config_sha256", "data_sha256") if summary.get(key)]
    rows += [(f"adapter_sha256 of {name}", value) for name, value in sorted((summary.get("adapter_sha256") or {}).items())]
    for key in ("numerics", "versions", "code", "driver", "mlflow"):
        for name, value in (summary.get(key) or {}).items():
            rows.append((f"{key}: {name}", json.dumps(value) if isinstance(value, dict | list) else str(value)))
    for number, actor in enumerate(summary.get("actors") or ()):
        held = ", ".join(map(str, actor.get("clients", ())))
        said = f"{held} on {actor.get('node')}, {actor.get('cpus')} CPU, {actor.get('gpus')} GPU, {actor.get('restarts', 0)} restarts"
        rows.append((f"actor {number}", said))
    return Table("Record", (words("Name"), words("Value")), tuple(rows))


def facts(run: Run) -> list[tuple[str, str]]:
    """What a reader looks for first."""
    s = run.summary
    options = ", ".join(f"{key} {value_text(v)}" for key, v in (run.config.get("strategy") or {}).items() if key != "name")
    found = [("Folder", run.folder.name), ("Task", run.task), ("Strategy", f"{run.strategy} ({options})" if options else run.strategy)]
    found += [("Seed", str(run.seed)), ("Clients", str(len(run.clients)))]
    found += [("Protocol", f"{s['protocol']['name']} {s['protocol']['sha256'][:16]}")] if s.get("protocol") else []
    found += [("Rounds", str(s["rounds"]))] if s.get("rounds") is not None else []
    found += [(name, bytes_text(s[key])) for name, key in (("Sent up", "bytes_up"), ("Sent down", "bytes_down")) if s.get(key) is not None]
    found += [("Wall time", seconds_text(s["wall_seconds"]))] if s.get("wall_seconds") is not None else []
    found += [("Virtual time", seconds_text(s["virtual_seconds"]))] if s.get("virtual_seconds") else []
    return found


def headline(summary: Mapping[str, Any], final: Final) -> str:
    """What happened, in a sentence."""
    metric = PRIMARY[summary["task"]]
    block = final.get(metric) or {}
    if block.get("mean") is None:
        return f"This run has no test score (status: {summary['status']})."
    score = estimate_of(block)
    everybody, own = summary["clients"], block.get("per_client") or {}
    without = [client for client in everybody if own.get(client, 0.0) is None]  # a client may lack a class
    of = f"{len(everybody) - len(without)} of " if without else ""
    said = f"After {summary.get('rounds')} rounds the mean {inside(metric)} over {of}{len(everybody)} clients is "
    said += f"{score.value:.3f}{interval_words(score)} on {score.n} test patients"
    return f"{said}; the frozen model alone reaches {block['frozen']:.3f}." if block.get("frozen") is not None else f"{said}."


def show_summary(summary: Mapping[str, Any], console: Console | None = None) -> None:
    """Print the result of a run: one sentence and the table of scores."""
    console = console or terminal()
    final = summary.get("final") or {}
    console.print(headline(summary, final), highlight=False)
    if final:
        for table in (final_table(final, summary["task"]), dataset_table(summary)):
            if table.rows:
                print_table(console, stamped(table, marks_of(summary)))
