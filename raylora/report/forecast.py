"""What `raylora run --plan` prints: who takes part, what is trained and sent, what it needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console

from raylora.report.marks import marks_of, stamped
from raylora.report.table import Table, bytes_text, print_table, terminal, whole, words

PARTS = ("train", "validation", "rating", "test")


def clients_table(plan: Mapping[str, Any]) -> Table:
    """Each client's patients by part, and how many of them are diseased where that is the task."""
    both = any("diseased" in client for client in plan["clients"].values())
    columns = [words("Client")]
    for part in PARTS:
        columns += [whole(part.capitalize()), *([whole(f"{part}, diseased")] if both else [])]
    rows = []
    for client, parts in plan["clients"].items():
        cells: list[str | int] = [f"{client} (held out)" if client in plan["held_out"] else client]
        for part in PARTS:
            cells += [parts[part], *([parts["diseased"][part]] if both else [])]
        rows.append(tuple(cells))
    total = [sum(int(row[i]) for row in rows) for i in range(1, len(columns))]
    return Table("Clients and their patients", tuple(columns), (*rows, ("all", *total)), marked=frozenset({len(rows)}))


def needs_table(plan: Mapping[str, Any]) -> Table:
    """Parameters, bytes, memory, actors."""
    memory, actors, parameters = plan["memory_bytes"], plan["actors"], plan["parameters"]
    first, later = plan["traffic"][0], plan["traffic"][-1]
    rounds = plan["rounds"]
    whole_run, how = sum(first.values()) + (rounds - 1) * sum(later.values()), plan["traffic_in_all"]
    rows = [
        ("Parameters, frozen", f"{parameters['frozen']:,}"),
        ("Parameters, trained (a client)", f"{parameters['trained']:,}"),
        ("Bytes of the first round", f"up {bytes_text(first['up'])}, down {bytes_text(first['down'])}"),
        ("Bytes of a later round", f"up {bytes_text(later['up'])}, down {bytes_text(later['down'])}"),
        (f"Bytes of all {rounds} rounds{'' if how == 'exactly' else f', {how}'}", bytes_text(whole_run)),
        (
            "Memory of an actor, about",
            f"{bytes_text(sum(memory.values()))} ({', '.join(f'{k} {bytes_text(v)}' for k, v in memory.items())})",
        ),
        ("An actor takes", f"{actors['cpus']:g} CPU, {actors['gpus']:g} GPU"),
        (
            "Actors",
            f"{actors['wanted']} wanted; here fit {actors['fit_here']} ({actors['fit_by_share']} by CPU and GPU, {actors['fit_by_memory']} by memory)",
        ),
    ]
    return Table("What it needs", (words(""), words("")), tuple(rows))


def show_plan(plan: Mapping[str, Any], console: Console | None = None) -> None:
    """Print the plan of a run."""
    console = console or terminal()
    base, sets = plan["base"], ", ".join(f"{name} {count}" for name, count in plan["datasets"].items())
    weights = base["weights"] or "random weights"
    console.print(
        f"{plan['name']}: {plan['strategy']} on {plan['task']}, {plan['rounds']} rounds; {base['name']} {base['size']}, {weights}",
        highlight=False,
        markup=False,
    )
    pairs = f"; {plan['duplicate_pairs']} patients are in two sets" if plan["duplicate_pairs"] else ""
    console.print(f"patients: {sets}{pairs}", highlight=False, markup=False)
    for table in (clients_table(plan), needs_table(plan)):
        print_table(console, stamped(table, marks_of(plan)))
    for note in (*([base["missing"]] if base["missing"] else []), *plan["notes"], *_too_many(plan["actors"])):
        console.print(f"! {note}", highlight=False, markup=False)


def _too_many(actors: Mapping[str, Any]) -> list[str]:
    if actors["fit_here"] >= actors["wanted"]:
        return []
    lacks = "memory" if actors["fit_by_memory"] < actors["fit_by_share"] else "CPU or GPU"
    return [f"not enough {lacks} here for {actors['wanted']} actors at once: placement.clients_per_actor puts several clients into one"]
