"""What a run asks for, checked by arithmetic before anything starts."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_runs import tiny

from raylora.cluster import session
from raylora.cluster.resources import Available, balanced, calls, fitting, local, request, request_of, round_cost
from raylora.config import Training
from raylora.core.errors import InputError
from raylora.federation.spec import SiteSpec
from raylora.planning import make_plan

FOUR = dict.fromkeys("abcd", 1.0)


def ask(weights=FOUR, cpus=1.0, gpus=0.0, per_actor=1, has=(4.0, 1.0)):
    return request(
        weights,
        cpus_per_client=cpus,
        gpus_per_client=gpus,
        clients_per_actor=per_actor,
        available=Available(cpus=has[0], gpus=has[1], where="here"),
    )


def test_one_actor_a_client_by_default():
    found = ask(gpus=0.25)
    assert found.groups == (("a",), ("b",), ("c",), ("d",)) and (found.cpus, found.gpus) == (1.0, 0.25)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"weights": dict.fromkeys("abcde", 1.0), "gpus": 0.25, "cpus": 0.1},
            ["5 actors need", "1.25 GPUs", "here has 4 CPUs and 1 GPUs", "clients_per_actor=2 would fit"],
        ),
        ({"gpus": 0.3}, ["must be 1/n", "found 0.3"]),
        ({"gpus": 0.75}, ["must be 1/n", "found 0.75"]),
        ({"gpus": 1.5, "has": (4.0, 9.0)}, ["whole number", "found 1.5"]),
        ({"cpus": 2.0}, ["4 actors need 8 CPUs", "clients_per_actor=2 would fit"]),
        ({"cpus": 5.0}, ["4 actors need 20 CPUs"]),
        ({"gpus": 1.0}, ["4 actors need 4 CPUs and 4 GPUs"]),
        ({"gpus": 0.25, "has": (4.0, 0.0)}, ["4 actors need 4 CPUs and 1 GPUs", "0 GPUs"]),
    ],
)
def test_what_does_not_fit_is_refused(options, words):
    with pytest.raises(InputError, match=r"^placement") as caught:
        ask(**options)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_round_costs_what_is_trained_and_scored():
    """Epochs cost by patients; a number of steps costs every client the same, however many patients it has."""
    names = tuple(f"p{i}" for i in range(60))
    large = SiteSpec(id="a", rank=2, training=names, validation=(), rating=names[:3], test=names[:15])
    small = SiteSpec(id="b", rank=2, training=names[:10], validation=(), rating=(), test=())
    epochs, steps = Training(local_epochs=2, rounds=5), Training(local_steps=8, batch_size=4, rounds=5)
    assert round_cost(large, epochs, frames=2) == 2 * 2 * 60 + 2 * (2 * 3 + 3) / 3
    assert round_cost(small, epochs, frames=1) == 20 and round_cost(small, steps, frames=2) == 32
    assert round_cost(large, steps, frames=2) == 32 + 6
    only_scored = SiteSpec(id="c", rank=2, training=(), validation=(), rating=(), test=names[:30])
    assert round_cost(only_scored, steps, frames=1) == 2


def test_what_others_hold_is_said(monkeypatch):
    monkeypatch.setattr(session.ray, "available_resources", lambda: {"CPU": 1.5, "memory": 1e9})
    assert session.taken_by_others(ask(cpus=0.25)) is None
    said = session.taken_by_others(ask(cpus=1.0, gpus=0.25))
    assert said == "the Ray cluster is busy (1.5 of 4 CPUs are free, 0 of 1 GPUs are free): the run begins once others have ended"


def test_packed_clients_need_one_share_together():
    assert ask(cpus=2.0, per_actor=2).groups == (("a", "c"), ("b", "d"))
    assert ask(cpus=4.0, gpus=1.0, per_actor=4).groups == (("a", "b", "c", "d"),)
    assert len(ask(cpus=1.5, per_actor="auto").groups) == 2
    assert len(ask(gpus=0.5, per_actor="auto").groups) == 2


def test_auto_needs_room_for_one_at_least():
    with pytest.raises(InputError, match="1 actor needs 9 CPUs"):
        ask(cpus=9.0, per_actor="auto")


def test_shares_do_not_span_two_gpus():
    two = Available(cpus=64, gpus=2, where="")
    assert fitting(two, 1.0, 1 / 3) == 6 and fitting(two, 1.0, 2.0) == 1 and fitting(two, 1.0, 0.0) == 64
    assert fitting(Available(cpus=0.3, gpus=0, where=""), 0.1, 0.0) == 3, "no client is lost to rounding"


def test_an_actor_does_not_span_two_machines():
    nodes = Available(cpus=6, gpus=2, where="the Ray cluster", nodes=((3.0, 1.0), (3.0, 1.0)))
    assert (
        fitting(nodes, 2.0, 0.0) == 2 and fitting(nodes, 1.0, 0.0) == 6 and fitting(nodes, 1.0, 0.5) == 4 and fitting(nodes, 1.0, 2.0) == 0
    )


def test_the_heaviest_first_each_to_who_has_the_least_to_do():
    assert alone({"a": 1.5, "b": 5.0, "c": 3.0, "d": 1.0}, 2) == (("b",), ("a", "c", "d"))


def alone(weights, count):
    return balanced([(client,) for client in weights], lambda unit: weights[unit[0]], count)


@settings(deadline=None, max_examples=60)
@given(st.dictionaries(st.text("abcdef", min_size=1, max_size=3), st.floats(0.1, 100), min_size=1, max_size=12), st.integers(1, 6))
def test_every_client_has_one_actor_and_none_has_much_more_to_do(weights, count):
    count = min(count, len(weights))
    groups = alone(weights, count)
    assert sorted(client for group in groups for client in group) == sorted(weights) and len(groups) == count
    loads = [sum(weights[client] for client in group) for group in groups]
    assert max(loads) <= sum(weights.values()) / count + max(weights.values()) + 1e-9  # Graham's bound
    assert alone(dict(reversed(list(weights.items()))), count) == groups


def test_a_plan_weighs_its_clients_and_keeps_those_that_share_a_pass_together(prepared_folder):
    here = Available(cpus=4, gpus=0, where="here")
    pooled = make_plan(tiny(prepared_folder, "disease", strategy={"name": "centralised"}, placement={"clients_per_actor": 3}))
    assert request_of(pooled, here).groups == (("pooled",), ("Canon", "GE", "Philips", "Siemens")), "it has nearly all of the work"
    pairs = make_plan(tiny(prepared_folder, "disease", training__stack=2, placement={"clients_per_actor": 2}))
    assert set(request_of(pairs, here).groups) == {("Canon", "GE"), ("Philips", "Siemens")}


def test_a_gpu_without_a_share_is_refused_before_anything_starts(prepared_folder, monkeypatch):
    """Ray would give it to nobody, and an actor may take the share that it was given: none."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    plan = make_plan(tiny(prepared_folder, "disease", training__device="cuda"))
    with pytest.raises(InputError, match=r"placement.gpus_per_client: expected a share \(1, or 1/n\) with training.device: cuda, found 0"):
        request_of(plan, Available(cpus=4, gpus=1, where="here"))


def test_the_clients_of_a_pass_have_one_home_and_those_that_never_train_are_spread():
    weights = {**dict.fromkeys("abcdef", 4.0), "held": 3.0, "out": 1.0}
    options = {"cpus_per_client": 1.0, "gpus_per_client": 0.0, "available": Available(cpus=9, gpus=0, where="here")}
    found = request(weights, clients_per_actor=4, stack=4, passive=("held", "out"), **options)
    assert found.groups == (("a", "b", "c", "d"), ("e", "f", "held", "out"))
    assert len(request(weights, clients_per_actor=1, stack=4, passive=("held", "out"), **options).groups) == 4, (
        "as many as there are stacks"
    )
    apart = request(weights, clients_per_actor=4, passive=("held", "out"), **options)
    assert apart.groups == (("a", "c", "e", "held"), ("b", "d", "f", "out")) and apart.arranged(4).groups == found.groups


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=15), st.integers(1, 4), st.integers(1, 4), st.data())
def test_every_stack_of_a_round_has_an_actor_and_no_actor_idles_beside_a_long_queue(costs, stack, actors, data):
    weights = {f"c{i:02d}": float(cost) for i, cost in enumerate(costs)}
    options = {"cpus_per_client": 1.0, "gpus_per_client": 0.0, "available": Available(cpus=9, gpus=0, where="here")}
    found = request(weights, clients_per_actor=math.ceil(len(weights) / actors), stack=stack, **options)
    cohort = sorted(data.draw(st.sets(st.sampled_from(sorted(weights)), min_size=1)))
    stacks = [cohort[i : i + stack] for i in range(0, len(cohort), stack)]
    places = found.assigned(stacks)
    assert places == found.assigned(stacks) and len(places) == len(stacks) and set(places) <= set(range(len(found.groups)))
    loads = [sum(found.cost(s) for s, place in zip(stacks, places, strict=True) if place == i) for i in range(len(found.groups))]
    assert max(loads) <= min(loads) + 1.5 * max(found.cost(s) for s in stacks)
    everyone = [sorted(weights)[i : i + stack] for i in range(0, len(weights), stack)]
    home = {client: index for index, group in enumerate(found.groups) for client in group}
    assert found.assigned(everyone) == [home[s[0]] for s in everyone], "where all take part, everybody stays at home"


def test_this_machine(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,2")
    assert local().gpus == 2 and local().cpus >= 1 and math.isfinite(local().cpus)
    for none in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", none)
        assert local().gpus == 0


def test_short_passes_of_an_actor_are_asked_for_together():
    assert calls([0, 1, 0, 0, 1], [0.25, 0.25, 0.75, 0.125, math.inf]) == [[0, 2], [1], [3], [4]]
    assert calls([0, 0, 0], [math.inf, math.nan, 0.5]) == [[0], [1], [2]]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 2), st.sampled_from([0.0, 0.125, 0.5, 2.0, math.inf])), max_size=60))
def test_every_pass_is_asked_for_once_and_calls_are_as_full_as_they_may(passes):
    places, parts = [place for place, _ in passes], [part for _, part in passes]
    found = calls(places, parts)
    assert sorted(number for call in found for number in call) == list(range(len(passes)))
    before = {}
    for call in found:
        (place,) = {places[number] for number in call}
        assert call == sorted(call) and (len(call) == 1 or sum(parts[number] for number in call) <= 1.0)
        if place in before:
            last = before[place]
            assert last[-1] < call[0] and sum(parts[number] for number in [*last, call[0]]) > 1.0
        before[place] = call
