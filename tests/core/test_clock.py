"""The virtual clock, by hand."""

import math

import pytest

from raylora.core.clock import Conditions, Line, Trip, Waiting, close, freshness

MEGABYTE = 1_000_000


def test_a_slow_line_takes_its_bits_over_its_rate_and_a_latency_each_way():
    """2 MB down at 8 Mbit/s: 2 s; 1 MB up at 1 Mbit/s: 8 s; 0.05 s each way; 3 s of computing."""
    trip = Trip(line=Line(up_mbit=1, down_mbit=8, latency_s=0.05), compute_s=3)
    assert trip.seconds(2 * MEGABYTE, MEGABYTE) == pytest.approx(2 + 8 + 2 * 0.05 + 3)
    assert Trip(line=Line(), compute_s=3).seconds(2 * MEGABYTE, MEGABYTE) == 3


def test_a_straggler_is_waited_for_unless_a_share_of_the_answers_is_enough():
    answers = {"a": 10.0, "b": 70.0, "c": 11.0, "d": 12.0}
    assert close(answers, 4, Waiting()) == (("a", "b", "c", "d"), 70.0)
    assert close(answers, 4, Waiting(share=0.75)) == (("a", "c", "d"), 12.0)
    assert close(answers, 4, Waiting(share=0.51)) == (("a", "c", "d"), 12.0), "rounded up"


def test_a_deadline_ends_the_round_where_somebody_is_missing():
    answers = {"a": 10.0, "b": 70.0, "c": 11.0}
    assert close(answers, 3, Waiting(deadline_s=30)) == (("a", "c"), 30.0)
    assert close(answers, 3, Waiting(deadline_s=70)) == (("a", "b", "c"), 70.0), "all are there: nobody is waited for"
    assert close({"a": 10.0, "c": 11.0}, 3, Waiting(deadline_s=30)) == (("a", "c"), 30.0), "b never answers: the server cannot know"
    assert close(answers, 3, Waiting(share=0.6, deadline_s=30)) == (("a", "c"), 11.0)
    assert close(answers, 3, Waiting(deadline_s=5)) == ((), 5.0)


def test_without_a_deadline_the_last_answer_that_comes_ends_the_round():
    assert close({"a": 10.0}, 3, Waiting()) == (("a",), 10.0)
    assert close({}, 3, Waiting()) == ((), 0.0)


def test_of_two_at_the_same_time_the_drawn_turn_then_the_id_decides():
    together = {"b": 1.0, "a": 1.0, "c": 1.0}
    assert close(together, 3, Waiting(share=0.6)) == (("a", "b"), 1.0)
    assert close(together, 3, Waiting(share=0.6), {"a": 0.9, "b": 0.2, "c": 0.5}) == (("b", "c"), 1.0)
    assert close({**together, "a": 0.5}, 3, Waiting(share=0.6), {"a": 0.9, "b": 0.2, "c": 0.5}) == (("a", "b"), 1.0)


def test_nothing_as_it_stands_takes_no_time():
    assert Conditions().trip("anybody").seconds(10**12, 10**12) == 0.0 and Conditions().waiting.deadline_s == math.inf


def test_the_weight_of_an_old_answer():
    assert [freshness(tau, 0.5) for tau in (0, 3)] == [1.0, 0.5] and freshness(9, 0.0) == 1.0
