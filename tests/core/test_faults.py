"""Every rate against its definition, within five standard errors; every draw from (seed, round, client) alone."""

import math

import numpy as np
import pytest

from raylora.core import faults
from raylora.core.faults import Rates, day

CLIENTS = [f"c{k}" for k in range(20)]
ROUNDS = 100
MANY = [(round, client) for round in range(ROUNDS) for client in CLIENTS]


def near(found: float, expected: float, spread: float, count: int) -> bool:
    return abs(found - expected) < 5 * spread / math.sqrt(count)


def days(**rates: float) -> list[faults.Day]:
    return [day(Rates(**rates), 3, round, client) for round, client in MANY]


def test_nothing_befalls_anybody_as_it_stands():
    assert set(days()) == {faults.Day()}


@pytest.mark.parametrize("chance", [0.05, 0.3, 1.0])
def test_how_often(chance: float):
    spread = math.sqrt(chance * (1 - chance))
    for name, value, reads in (
        ("dropout", {}, lambda d: d.drops),
        ("slow", {"slow_factor": 7.0}, lambda d: d.slowness == 7.0),
        ("outage", {"outage_s": 60.0}, lambda d: d.outage_s == 60.0),
    ):
        found = [reads(d) for d in days(**{name: chance}, **value)]
        assert near(np.mean(found), chance, spread, len(found)) or np.mean(found) == chance == 1.0, name
        by_client = np.reshape(found, (ROUNDS, len(CLIENTS))).mean(0)
        assert np.ptp(by_client) > 0 or chance == 1.0, "not the same clients all the time"


def test_delays_are_exponential():
    found = np.array([d.late_s for d in days(late_s=4.0)])
    assert near(found.mean(), 4.0, 4.0, len(found))
    assert near(np.mean(found > 4.0), math.exp(-1), 0.5, len(found)), "a share 1/e waits longer than the mean"


def test_one_dial_moves_no_draw_of_another_and_more_of_it_keeps_what_there_was():
    alone, together = days(dropout=0.2), days(dropout=0.2, slow=0.5, slow_factor=3.0, late_s=2.0, outage=0.1, outage_s=9.0)
    assert [d.drops for d in alone] == [d.drops for d in together]
    more = days(dropout=0.4)
    assert all(b.drops for a, b in zip(alone, more, strict=True) if a.drops)
    assert [d.late_s * 2 for d in days(late_s=1.0)] == pytest.approx([d.late_s for d in days(late_s=2.0)])


def test_shares_of_the_clients_are_exact_nested_and_of_the_ids_alone():
    assert [len(faults.some_of(CLIENTS[:5], share, 0, "x")) for share in (0.0, 0.2, 0.3, 1.0)] == [0, 1, 2, 5]
    few, more = (set(faults.some_of(CLIENTS, share, 0, "x")) for share in (0.2, 0.5))
    assert few < more and few == set(faults.some_of(CLIENTS[::-1], 0.2, 0, "x"))
    drawn = [faults.some_of(CLIENTS[:5], 0.2, seed, "byzantine")[0] for seed in range(500)]
    assert all(near(drawn.count(c) / 500, 0.2, 0.4, 500) for c in CLIENTS[:5])


def test_who_joins_and_leaves():
    found = faults.tenure(CLIENTS, joins=0.5, leaves=0.25, rounds=10, seed=1)
    assert sum(first > 0 for first, _ in found.values()) == 10
    assert 1 <= sum(end < 10 for _, end in found.values()) <= 5 and all(0 <= first < end <= 10 for first, end in found.values())
    assert set(faults.tenure(CLIENTS, 0.0, 0.0, 10, 1).values()) == {(0, 10)}
    assert set(faults.tenure(CLIENTS, 1.0, 1.0, 1, 1).values()) == {(0, 1)}, "with one round nobody comes later or goes"
    starts = [faults.tenure(["a"], 1.0, 0.0, 11, seed)["a"][0] for seed in range(2000)]
    assert min(starts) == 1 and max(starts) == 10 and near(np.mean(starts), 5.5, math.sqrt(99 / 12), 2000)
    assert faults.attendance({"b": (0, 2), "a": (1, 3)}, 1) == ("a", "b") and faults.attendance({"b": (0, 2), "a": (1, 3)}, 2) == ("a",)


def test_lines_and_devices_are_log_normal_with_median_one():
    for quality in (faults.device, faults.line_quality):
        logs = np.log([faults.spread_factor(quality(seed, "GE"), 0.7) for seed in range(2000)])
        assert near(logs.mean(), 0.0, 0.7, 2000) and near(logs.std(), 0.7, 0.7, 2000)
    assert faults.spread_factor(0.9, 0.0) == 1.0 and faults.spread_factor(0.5, 3.0) == pytest.approx(1.0)
    assert faults.device(0, "GE") != faults.line_quality(0, "GE")


def test_ranks_are_halved_by_the_device():
    assert [faults.halved_rank(8, quality, 0) for quality in (0.01, 0.99)] == [8, 8]
    assert [faults.halved_rank(8, quality, 3) for quality in (0.99, 0.74, 0.49, 0.01)] == [8, 4, 2, 1]
    assert faults.halved_rank(3, 0.01, 3) == 1
    drawn = [faults.halved_rank(4, faults.device(seed, "GE"), 1) for seed in range(2000)]
    assert near(drawn.count(4) / 2000, 0.5, 0.5, 2000) and set(drawn) == {2, 4}


def test_annotators():
    offsets = np.array([faults.contour_offset_mm(seed, "GE", 2.0) for seed in range(2000)])
    assert near(offsets.mean(), 0.0, 2.0, 2000) and near(offsets.std(), 2.0, 2.0, 2000)
    assert faults.contour_offset_mm(0, "GE", 0.0) == 0.0
    assert {faults.left_out_structure(seed, "GE", 3) for seed in range(50)} == {1, 2, 3}
