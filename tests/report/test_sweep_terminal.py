"""A sweep on a terminal: the order of its ranking, and a terminal that goes away."""

from raylora.report.sweep import ranked


def test_trials_without_an_objective_come_last_whatever_is_best():
    objectives = [("finished", 0.5), ("finished", None), ("finished", -0.2), ("pruned", 0.9), ("failed", None), ("unfinished", 0.1)]
    rows = [{"number": number, "status": status, "objective": value} for number, (status, value) in enumerate(objectives)]
    assert [row["number"] for row in ranked(rows, "max")] == [0, 2, 1, 3, 4, 5]
    assert [row["number"] for row in ranked(rows, "min")] == [2, 0, 1, 3, 4, 5]
