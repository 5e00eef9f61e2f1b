"""Progress of a run, on a terminal and in a file."""

import io
import sys

import pytest
from rich.console import Console

from raylora.report import live

ROUND = {"event": "round", "round": 0, "rounds": 2, "lines": [{"kind": "round", "seconds": 60.0, "validation": {"dice": 0.5}}]}
EVENTS = (
    {"event": "start", "name": "n", "clients": ["a", "b", "c"], "rounds": 2, "round": 0},
    {"event": "clients", "round": 0, "done": 1, "asked": 3},
    {"event": "clients", "round": 0, "done": 2, "asked": 3},
    ROUND,
    {"event": "clients", "round": 1, "done": 1, "asked": 3},
)


def shown(**options):
    console = Console(file=io.StringIO(), width=100, **options)
    with live.Live(console) as progress:
        for event in EVENTS:
            progress(event)
            if progress.progress is not None:
                progress.progress.refresh()
    return console.file.getvalue()


def test_in_a_file_a_round_of_minutes_has_a_line_now_and_then(monkeypatch):
    monkeypatch.setattr(live, "WITHIN_EVERY_S", -1.0)
    lines = shown().splitlines()
    assert lines == [
        "n: 3 clients (a, b, c), 2 rounds",
        "round 1: 1/3 clients",
        "round 1: 2/3 clients",
        "round 1/2  60.0 s  loss:   validation: dice 0.500",
        "round 2: 1/3 clients",
    ]
    monkeypatch.setattr(live, "WITHIN_EVERY_S", 3600.0)
    assert shown().splitlines() == [lines[0], lines[3]]


@pytest.mark.parametrize("part", ["round 1: 2/3 clients", "rounds", "round 2: 1/3 clients"])
def test_on_a_terminal_the_bar_says_it(part):
    assert part in shown(force_terminal=True)


def test_many_clients_are_counted_and_weights_have_their_owners():
    console = Console(file=io.StringIO(), width=100)
    progress = live.Live(console)
    progress({**EVENTS[0], "clients": [f"c{i}" for i in range(10)]})
    line = {"kind": "round", "seconds": 1.0, "validation": {}, "weights": {"GE": 0.94, "Canon": 1.0}}
    progress({**ROUND, "lines": [line]})
    first, second = console.file.getvalue().splitlines()
    assert "10 clients (c0, c1, c2, c3, c4, c5, c6 and 3 more)" in first and second.endswith("weights: GE 0.94  Canon 1.00")


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_breaks_lines_between_words(monkeypatch):
    monkeypatch.setattr("sys.stderr", Terminal())
    monkeypatch.setenv("COLUMNS", "30")
    monkeypatch.setenv("TERM", "xterm")
    live.Live()({"event": "note", "text": "a sentence that is longer than the terminal is wide"})
    assert [line.strip() for line in sys.stderr.getvalue().splitlines()] == ["a sentence that is longer than", "the terminal is wide"]
