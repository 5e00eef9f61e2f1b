"""The table of times from one record is what the clock of a run on such lines says."""

import pytest

from benchmarks.time_to_dice import reached, timeline
from raylora.core.clock import Line


def test_a_record_without_a_clock_gives_the_clock_of_a_run_on_those_lines(runs):
    plain = runs()
    on_lines = runs(network={"up_mbit": 0.01, "down_mbit": 0.01, "latency_s": 0.5, "step_s": 2.0})
    compute_s = {client: 2.0 * steps for client, steps in plain.plan.dials.steps.items()}
    times = timeline(plain.lines, Line(up_mbit=0.01, down_mbit=0.01, latency_s=0.5), compute_s)
    told = [line for line in on_lines.lines if line["kind"] == "round"]
    assert [now for now, _ in times] == pytest.approx([line["virtual_seconds"] for line in told])
    assert [score for _, score in times] == [line["validation"]["dice"] for line in told]


def test_the_first_round_that_is_good_enough_counts():
    times = [(10.0, 0.5), (20.0, None), (30.0, 0.8), (40.0, 0.7)]
    assert reached(times, 0.8) == (3, 30.0) and reached(times, 0.81) is None and reached(times, 0.4) == (1, 10.0)
