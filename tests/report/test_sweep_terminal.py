"""A sweep on a terminal: the order of its ranking, and a terminal that goes away."""

import io

import pytest
from rich.console import Console

from raylora.report.live import Live
from raylora.report.sweep import SweepLive, ranked, trials_table, values_text


class Gone(io.StringIO):
    """A terminal that hangs up after so many writes."""

    def __init__(self, writes: int) -> None:
        super().__init__()
        self.left = writes

    def write(self, text: str) -> int:
        self.left -= 1
        if self.left < 0:
            raise OSError(5, "Input/output error")
        return super().write(text)


@pytest.mark.filterwarnings("error")  # of a thread that died
@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("writes", [0, 3])
def test_a_terminal_that_has_gone_ends_no_sweep(terminal, writes):
    row = {
        "number": 0,
        "values": {"lora.rank": 1},
        "seed": 0,
        "status": "finished",
        "rounds": 2,
        "objective": 0.5,
        "test": None,
        "error": None,
    }
    counts = {"finished": 1, "pruned": 0, "failed": 0, "unfinished": 1}
    state = {
        "name": "ranks",
        "counts": counts,
        "best": None,
        "trials_planned": 2,
        "space": {"lora.rank": {}},
        "objective": {"metric": "dice"},
    }
    rows = [row, {**row, "number": 1, "status": "unfinished"}]
    with SweepLive(Console(file=Gone(writes), force_terminal=terminal)) as live:
        for done in range(3):
            live({"event": "progress", "text": "checking trials", "done": done, "total": 2})
        for _ in range(3):
            live({"event": "sweep", "state": {**state, "trials": rows}, "left_s": 1.0, "concurrent": 1})
            rows = [*rows, {**row, "number": len(rows)}]
        live({"event": "note", "text": "over"})


def test_trials_without_an_objective_come_last_whatever_is_best():
    objectives = [("finished", 0.5), ("finished", None), ("finished", -0.2), ("pruned", 0.9), ("failed", None), ("unfinished", 0.1)]
    rows = [{"number": number, "status": status, "objective": value} for number, (status, value) in enumerate(objectives)]
    assert [row["number"] for row in ranked(rows, "max")] == [0, 2, 1, 3, 4, 5]
    assert [row["number"] for row in ranked(rows, "min")] == [2, 0, 1, 3, 4, 5]


def test_keys_with_one_last_word_are_told_apart():
    values = {"lora.rank": 8, "faults.label_noise.rate": 0.1, "faults.contour_mm.rate": 0.2}
    assert values_text(values) == "rank 8, faults.label_noise.rate 0.1, faults.contour_mm.rate 0.2"
    row = {"number": 0, "values": values, "seed": 0, "status": "finished", "rounds": 1, "objective": 0.5, "test": 0.5}
    table = trials_table("Trials", {"space": values, "objective": {"metric": "dice"}}, [row])
    assert [column.name for column in table.columns][1:4] == ["rank", "faults.label_noise.rate", "faults.contour_mm.rate"]


@pytest.mark.parametrize("kind", ["note", "phase"])
def test_brackets_are_no_markup(kind):
    said = Console(file=io.StringIO())
    with Live(said) as live:
        live({"event": kind, "text": "kept in [/data/x] and [bold]"})
    assert said.file.getvalue() == "kept in [/data/x] and [bold]\n"
