"""A sweep on a terminal: one calm table while it runs, and the ranking at its end."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from rich.console import Console, Group
from rich.live import Live as RichLive
from rich.text import Text

from raylora.report.live import Live
from raylora.report.table import Table, decimal, print_table, rich_table, seconds_text, short_key, terminal, whole, words
from raylora.report.words import metric_words

MOST_ROWS = 12


class SweepLive:
    """Called with a sweep's events; a table in place on a terminal, a line for each ended trial elsewhere. Standard error only.

    A terminal that has gone away ends no sweep.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.live = Live(console)
        self.console = self.live.console
        self.table: RichLive | None = None
        self.told: set[int] = set()

    def __enter__(self) -> SweepLive:
        self.live.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if self.table is not None:
            with contextlib.suppress(OSError):
                self.table.stop()
        self.live.__exit__(kind, value, trace)

    def __call__(self, event: Mapping[str, Any]) -> None:
        if event["event"] != "sweep":
            self.live(event)
            return
        with contextlib.suppress(OSError):
            self._show(event)

    def _show(self, event: Mapping[str, Any]) -> None:
        if self.console.is_terminal:
            if self.table is None:
                self.live.__exit__(None, None, None)  # its bar makes way
                self.table = RichLive(console=self.console, transient=True, refresh_per_second=2)
                self.table.start()
            self.table.update(Group(Text(headline(event), overflow="fold"), rich_table(running(event["state"]))))
            return
        ended = [row for row in event["state"]["trials"] if row["status"] not in ("unfinished",)]
        for row in ended:
            if row["number"] not in self.told:
                self.told.add(row["number"])
                left = f", about {seconds_text(event['left_s'])} left" if event["left_s"] is not None else ""
                self.console.print(
                    f"{line(row)}  [{len(ended)} of {event['state']['trials_planned']}{left}]", highlight=False, markup=False
                )


def headline(event: Mapping[str, Any]) -> str:
    """Where a sweep stands, in one line."""
    state = event["state"]
    counts = state["counts"]
    left = f" · about {seconds_text(event['left_s'])} left" if event["left_s"] is not None else ""
    found = state["best"]
    best = f" · best so far {found['objective']:.3f} ({values_text(found['values'])})" if found else ""
    ended = counts["finished"] + counts["pruned"] + counts["failed"]
    return (
        f"{state['name']}: {ended} of {state['trials_planned']} trials, {counts['pruned']} pruned, {counts['failed']} failed, "
        f"at most {event['concurrent']} at once{left}{best}"
    )


def line(row: Mapping[str, Any]) -> str:
    """One trial in one line."""
    score = "" if row["objective"] is None else f" {row['objective']:.3f}"
    why = f": {row['error']}" if row["error"] else ""
    return f"trial {row['number']:03d} {row['status']}{score} after {row['rounds']} rounds ({values_text(row['values'])}, seed {row['seed']}){why}"


def values_text(values: Mapping[str, Any]) -> str:
    """``rank 8, temperature 0.5``: the last word of each key that has it alone."""
    return ", ".join(f"{short_key(key, values)} {value_text(value)}" for key, value in values.items())


def value_text(value: Any) -> str:
    """A value of a search space as a person writes it."""
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, Mapping):
        return " ".join(str(value[key]) if key == "name" else f"{key}={value_text(value[key])}" for key in value)
    return str(value)


def running(state: Mapping[str, Any]) -> Table:
    """The trials under way."""
    rows = [row for row in state["trials"] if row["status"] == "unfinished"][:MOST_ROWS]
    return trials_table("Running", state, rows)


def trials_table(title: str, state: Mapping[str, Any], rows: list[Mapping[str, Any]], note: str = "") -> Table:
    """One row a trial, one column a key of the space."""
    keys = list(state["space"])
    columns = (
        whole("Trial"),
        *(words(short_key(key, keys)) for key in keys),
        whole("Seed"),
        words("Status"),
        whole("Rounds"),
        decimal(f"{metric_words(state['objective']['metric'])}, validation", 3),
        decimal("Test", 3),
    )
    cells = tuple(
        (
            row["number"],
            *(value_text(row["values"].get(key)) for key in keys),
            row["seed"],
            row["status"],
            row["rounds"],
            row["objective"],
            row["test"],
        )
        for row in rows
    )
    return Table(title, columns, cells, note)


def show_sweep(state: Mapping[str, Any]) -> None:
    """The ranking of all trials, and the winner with what it was chosen by and among how many."""
    rows = ranked(state["trials"], state["objective"]["mode"])
    console = terminal()
    note = "Ranked on validation patients; test patients are scored once, after a trial's last round, and choose nothing. "
    print_table(console, trials_table(state["name"], state, rows, note))
    console.print(winner(state), highlight=False, markup=False, soft_wrap=True)


def ranked(trials: Sequence[Mapping[str, Any]], mode: str) -> list[Mapping[str, Any]]:
    """Trials, the best first: by how they ended, then by their objective, those without one last."""
    sign = 1.0 if mode == "max" else -1.0
    order = {"finished": 0, "pruned": 1, "failed": 2, "unfinished": 3}

    def place(row: Mapping[str, Any]) -> tuple[int, float, int]:
        value = row["objective"]
        return order[row["status"]], math.inf if value is None else -sign * value, row["number"]

    return sorted(trials, key=place)


def winner(state: Mapping[str, Any]) -> str:
    """The sentence on the best configuration."""
    found = state["best"]
    counts = state["counts"]
    ends = ", ".join(f"{counts[status]} {status}" for status in ("finished", "pruned", "failed"))
    how_many = f"{state['configurations_tried']} configurations tried; trials: {ends}"
    if counts["unfinished"]:
        how_many += f", {counts['unfinished']} unfinished (the same command goes on)"
    if found is None:
        return f"No configuration has finished with all its seeds; {how_many}."
    test = f", test {found['test']:.3f}" if found["test"] is not None else ""
    seeds = f" over {len(found['trials'])} seeds" if len(found["trials"]) > 1 else ""
    return f"Best on validation: {values_text(found['values'])}: {found['objective']:.3f}{seeds}{test}; {how_many}."
