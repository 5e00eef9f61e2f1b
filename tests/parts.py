"""The parts of the suite: what each costs, at the end of a run, and one of them alone (`make test PART=core`)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import pytest

CORE = "core"  # data, models, training, strategies, whole runs, README's commands
PARTS = {  # how the names of a part's tests begin, after tests/; all others are the core's
    "sweeps": (  # and MLflow, comparison, notebooks
        "sweep/",
        "cluster/test_sweep.py",
        "cluster/test_recipes.py",
        "cluster/test_two_nodes.py",
        "data/test_travel.py",
        "metrics/test_significance.py",
        "report/test_browser.py",
        "report/test_compare",
        "report/test_pairs.py",
        "report/test_remote.py",
        "report/test_sweep_terminal.py",
        "tracking/test_server.py",
        "tracking/test_sweep_tracker.py",
        "test_notebooks.py",
        "benchmarks/test_campaigns.py::test_a_sweep",
    ),
    "speed": (  # stacks, caches, peers
        "benchmarks/test_cached_sweep.py",
        "benchmarks/test_gpu_benchmarks.py",
        "benchmarks/test_overhead.py",
        "benchmarks/test_peers.py",
        "cluster/test_local_ray.py",
        "cluster/test_wire.py",
        "data/test_feature_folder.py",
        "data/test_pool.py",
        "federation/test_stack",
        "models/test_attention.py",
        "models/test_slices.py",
        "models/test_stacked.py",
        "test_gpu.py",
        "test_planner.py",
        "training/test_features.py",
    ),
    "stress": (  # and survival
        "benchmarks/test_campaigns.py",
        "benchmarks/test_fuzz.py",
        "benchmarks/test_stress_pages.py",
        "benchmarks/test_time_to_dice.py",
        "cluster/test_ends.py",
        "cluster/test_stress_on_ray.py",
        "core/test_byzantine.py",
        "core/test_clock.py",
        "core/test_faults.py",
        "data/test_damage.py",
        "federation/test_border.py",
        "federation/test_dials.py",
        "report/test_stress_page.py",
        "test_doctor.py",
        "test_machine_failures.py",
        "test_stress.py",
    ),
}


def part(test: str) -> str:
    """Of a test's id; the longest beginning that is listed counts, so that a file may be told apart from its folder."""
    name = test.removeprefix("tests/")
    listed = [(len(start), about) for about, starts in PARTS.items() for start in starts if name.startswith(start)]
    return max(listed, default=(0, CORE))[1]


class Seconds:
    """Adds up what tests take, with what is set up for them."""

    def __init__(self, processes: int) -> None:
        self.processes = processes
        self.tests: dict[str, set[str]] = defaultdict(set)
        self.seconds: dict[str, float] = defaultdict(float)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        about = part(report.nodeid)
        self.tests[about].add(report.nodeid)
        self.seconds[about] += report.duration

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if len(self.tests) > 1:
            for line in table({about: (len(self.tests[about]), self.seconds[about]) for about in (CORE, *PARTS)}, self.processes):
                terminalreporter.write_line(line)


def table(parts: Mapping[str, tuple[int, float]], processes: int) -> list[str]:
    """A line a part: its tests, their seconds divided by the number of processes that share them."""
    wide = max(map(len, parts))
    return [f"{about:{wide}}  {tests:5} tests {seconds / processes:6.0f} s" for about, (tests, seconds) in parts.items()]
