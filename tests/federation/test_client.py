"""A client's round: what it is told, what it sends back, what it keeps; and what the server refuses to take."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_runs import tiny

from raylora import planning
from raylora.core import lowrank
from raylora.core.errors import RunError
from raylora.core.tree import freeze
from raylora.core.types import Broadcast, ClientState, Phase, Task
from raylora.data.shards import PreparedSet
from raylora.federation.answers import Scored
from raylora.federation.build import build_host
from raylora.federation.host import Host
from raylora.federation.protocol import compose, initial_tree
from raylora.federation.rounds import Progress, receive
from raylora.strategies import create
from raylora.training.inference import rating_scores

EVERYTHING = (Phase(trains=("*",)),)


@pytest.fixture(scope="module")
def plan(prepared_folder) -> planning.Plan:
    return planning.make_plan(tiny(prepared_folder, "disease", strategy={"name": "med_duallora"}, training__lr=0.1))


def host_of(plan: planning.Plan, **protocol) -> Host:
    host = build_host(plan.spec, plan.weights)
    host.protocol = replace(host.protocol, **protocol)
    return host


def first_tree(host: Host) -> dict[str, np.ndarray]:
    """What a server would send first: the shared names."""
    tree = initial_tree(host.model.outline, host.protocol, "GE", 1)
    return {name: value for name, value in tree.items() if not name.startswith("local.")}


def told(host: Host, round: int = 0, **task) -> Broadcast:
    options = {"phases": EVERYTHING, "uploads": ("*", "!local.*"), **task}
    return Broadcast(adapter=first_tree(host), task=Task(round=round, **options))


def bits(tree) -> dict[str, bytes]:
    return {name: value.tobytes() for name, value in tree.items()}


def test_uploads_are_sent_and_the_rest_is_kept(plan):
    host = host_of(plan)
    (outcome,) = host.train(["GE"], [told(host)])
    shared = set(first_tree(host))
    assert outcome.update.adapter.keys() == shared and outcome.update.num_examples == 3 and outcome.update.scaling == 2.0
    private = outcome.state.trees["private"]
    assert private.keys() == {f"local.{name}" for name in shared if ".lora_" in name} and outcome.state.round == 0
    assert all(value.any() for name, value in private.items() if name.endswith("lora_B")), "it was trained"
    assert set(outcome.update.metrics) == {"loss"} and outcome.seconds > 0


def test_what_is_uploaded_can_be_kept_too(plan):
    host = host_of(plan)
    (outcome,) = host.train(["GE"], [told(host, keeps=("*.lora_A",))])
    assert set(first_tree(host)) == set(outcome.update.adapter)
    kept = {name for name in outcome.state.trees["private"] if not name.startswith("local.")}
    assert kept and kept == {name for name in first_tree(host) if name.endswith("lora_A")}


def test_asked_again_for_a_round_it_gives_the_same(plan):
    host = host_of(plan)
    first = host.train(["GE"], [told(host, 0)])[0]
    again = host.train(["GE"], [told(host, 0)])[0]
    assert bits(again.update.adapter) == bits(first.update.adapter) and bits(again.state.trees["private"]) == bits(
        first.state.trees["private"]
    )
    second = host.train(["GE"], [told(host, 1)])[0]
    assert bits(host.train(["GE"], [told(host, 1)])[0].state.trees["private"]) == bits(second.state.trees["private"])
    other = host_of(plan)
    other.restore({"GE": first.state})
    assert bits(other.train(["GE"], [told(host, 1)])[0].state.trees["private"]) == bits(second.state.trees["private"])
    fresh = host_of(plan)
    assert bits(fresh.train(["GE"], [told(host, 1)])[0].state.trees["private"]) != bits(second.state.trees["private"])


def test_company_changes_no_bit(plan):
    alone = host_of(plan).train(["GE"], [told(host_of(plan))])[0]
    host = host_of(plan)
    host.train(["Canon"], [told(host)])
    assert bits(host.train(["GE"], [told(host)])[0].update.adapter) == bits(alone.update.adapter)


def test_a_model_is_the_initial_one_then_what_was_kept_then_what_was_sent(plan):
    host = host_of(plan)
    own = initial_tree(host.model.outline, host.protocol, "GE", 1)
    name, head = "local.blocks.0.attn.qkv.lora_B", "classification_head.bias"
    state = ClientState(trees={"private": {name: own[name] + 1, head: own[head] + 1}})
    found = compose(host.model.outline, host.protocol, "GE", 1, state, {head: own[head] + 2})
    assert found[name][0, 0] == 1 and (found[head] == own[head] + 2).all() and found.keys() == own.keys()
    with pytest.raises(ValueError, match=r"client GE was sent names that its model does not have: \['nonsense'\]"):
        compose(host.model.outline, host.protocol, "GE", 1, None, {"nonsense": own[head]})


def test_private_adapters_start_differently_and_the_rest_alike(plan):
    host = host_of(plan)
    here, there = (initial_tree(host.model.outline, host.protocol, client, 1) for client in ("GE", "Canon"))
    assert {name for name in here if bits(here)[name] != bits(there)[name]} == {
        n for n in here if n.startswith("local.") and n.endswith("A")
    }


def test_a_smaller_rank_starts_with_the_first_rows(plan):
    host = host_of(plan, max_rank=3)
    whole, part = (initial_tree(host.model.outline, host.protocol, "GE", rank) for rank in (3, 2))
    name = "blocks.0.attn.qkv.lora_A"
    assert part[name].shape == (2, 16) and np.array_equal(part[name], whole[name][:2])


def test_scores_are_of_the_model_received_and_of_the_one_trained(plan):
    host = host_of(plan)
    (outcome,) = host.train(["GE"], [told(host, scores=("received", "trained"))])
    cases, protocol = host.sites["GE"].shard.rating, host.protocol

    def score(tree):
        host.model.load([tree], [protocol.alpha])
        return rating_scores(host.model, [cases], "disease", protocol.depth, protocol.eval_batch)[0]

    received = score(initial_tree(host.model.outline, protocol, "GE", 1))
    trained = score({**outcome.update.adapter, **outcome.state.trees["private"]})
    assert [outcome.update.metrics[key] for key in ("score_received", "score_trained")] == [received, trained] and received != trained


@pytest.mark.parametrize("task", ["disease", "segmentation"])
def test_a_score_is_what_its_definition_gives_on_the_rating_patients(prepared_folder, task):
    """From the logits of each image alone and the labels as they were prepared: the probability of the true class; Dice by hand."""
    plan = planning.make_plan(
        tiny(prepared_folder, task, data__fractions=[0.25, 0.125, 0.375, 0.25], strategy={"name": "rate_my_lora"}, training__cache="off")
    )
    host, prepared = build_host(plan.spec, plan.weights), PreparedSet(prepared_folder)
    (outcome,) = host.train(["Siemens"], [told(host, phases=(), uploads=(), scores=("received",))])
    host.model.load([initial_tree(host.model.outline, host.protocol, "Siemens", 1)], [host.protocol.alpha])
    scores = []
    for patient in plan.splits["Siemens"]["rating"]:
        frames = prepared.study(patient).frames
        if task == "disease":
            with torch.no_grad():
                logits = host.model(torch.from_numpy(np.stack([frames["ED"].image, frames["ES"].image])[None]))[0].double().numpy()
            diseased = int(re.search(r"(\d+)V\d$", patient)[1]) % 2  # every second study of `small_studies.cohort` is DCM
            scores.append(np.exp(logits[diseased]) / np.exp(logits).sum())
            continue
        for frame in ("ED", "ES"):
            with torch.no_grad():
                found = host.model(torch.from_numpy(np.array(frames[frame].image)[None, None]))[0].numpy().argmax(0)
            for structure in (1, 2, 3):
                a, b = found == structure, frames[frame].label == structure
                scores.append(2 * (a & b).sum() / (a.sum() + b.sum()))
    assert len(scores) == len(plan.splits["Siemens"]["rating"]) * (1 if task == "disease" else 6) > 2
    assert outcome.update.metrics == {"score_received": pytest.approx(np.mean(scores), abs=1e-6)}


@pytest.mark.parametrize("rank", [1, 2])
def test_a_peer_is_scored_as_it_would_be_used(prepared_folder, rank):
    """Unit pairs of another client's rank, on the base as it is: the score of W + B A, with that client's head."""
    plan = planning.make_plan(
        tiny(prepared_folder, "disease", strategy={"name": "rate_my_lora", "rule": "peer"}, lora__rank=[rank, 2, 2, 2])
    )
    host = build_host(plan.spec, plan.weights)
    rng = np.random.default_rng(0)
    peer = {
        name: value + rng.normal(0, 0.3, value.shape)
        for name, value in initial_tree(host.model.outline, host.protocol, "Canon", rank).items()
    }
    unit = freeze(lowrank.to_unit(peer, 2.0 / rank))
    asked = Broadcast(adapter={}, extra={"peer:Canon": unit}, task=Task(round=0, scores=("peer:Canon",)))
    (outcome,) = host.train(["GE"], [asked])
    host.model.load([peer], [2.0])
    expected = rating_scores(host.model, [host.sites["GE"].shard.rating], "disease", 4, 4)[0]
    assert outcome.update.metrics == {"score_peer:Canon": pytest.approx(expected, abs=1e-6)} and not outcome.update.adapter


def test_what_predicts_nothing_finite_is_scored_zero_and_blames_nobody_who_was_shown_it(prepared_folder):
    plan = planning.make_plan(tiny(prepared_folder, "disease", strategy={"name": "rate_my_lora", "rule": "peer"}))
    host = build_host(plan.spec, plan.weights)
    lie = freeze({name: np.full_like(v, 1e30) for name, v in initial_tree(host.model.outline, host.protocol, "Canon", 1).items()})
    asked = Broadcast(adapter={}, extra={"peer:Canon": lie}, task=Task(round=0, scores=("peer:Canon",)))
    (outcome,) = host.train(["GE"], [asked])
    assert outcome.update.metrics == {"score_peer:Canon": 0.0}


def test_control_variates_follow_option_two(plan):
    """c_k+ = c_k - c + (w_received - w_trained) / (K eta), and what is sent is the change."""
    host = host_of(plan)
    host.protocol = replace(host.protocol, settings=replace(host.protocol.settings, optimiser="sgd", local_steps=3))
    control = (Phase(trains=("*", "!local.*"), terms={"control": 1.0}),)
    rng = np.random.default_rng(0)
    c, c_k = (freeze({n: rng.normal(0, 0.01, v.shape) for n, v in first_tree(host).items()}) for _ in range(2))
    host.restore({"GE": ClientState(trees={"c_k": c_k}, round=-1)})
    (outcome,) = host.train(["GE"], [replace(told(host, phases=control), extra={"c": c})])
    for name, received in first_tree(host).items():
        step = (received - outcome.update.adapter[name]) / (3 * 0.1)
        np.testing.assert_allclose(outcome.state.trees["c_k"][name], c_k[name] - c[name] + step, atol=1e-5)
        np.testing.assert_allclose(outcome.update.extra["delta_c"][name], step - c[name], atol=1e-5)


def test_control_variates_of_what_a_round_does_not_train_stay(plan):
    """A method of one's own may go by stages, or use them in some rounds only."""
    host = host_of(plan)
    c_k = freeze({n: np.ones_like(v) for n, v in first_tree(host).items()})
    host.restore({"GE": ClientState(trees={"c_k": c_k}, round=-1)})
    (outcome,) = host.train(["GE"], [told(host)])
    assert bits(outcome.state.trees["c_k"]) == bits(c_k) and not outcome.update.extra
    some = {"phases": (Phase(trains=("*lora_A",), terms={"control": 1.0}),)}
    (outcome,) = host.train(["GE"], [replace(told(host, 1, **some), extra={"c": freeze({})})])
    kept = {n: v for n, v in outcome.state.trees["c_k"].items() if n.endswith("lora_B")}
    assert kept and bits(kept) == bits({n: c_k[n] for n in kept})


def test_a_model_that_is_not_finite_is_not_sent(plan):
    host = host_of(plan)
    tree = told(host)
    broken = replace(tree, adapter={n: v * np.float32(np.nan if n == "classification_head.bias" else 1) for n, v in tree.adapter.items()})
    with pytest.raises(RunError, match=r"^round 1, client GE"):
        host.train(["GE"], [broken])
    untrained = replace(broken, task=Task(round=0, phases=(Phase(trains=("nothing",), share=0.0),), uploads=("*", "!local.*")))
    with pytest.raises(RunError, match=r"^round 1, client GE: classification_head.bias is not finite after training"):
        host.train(["GE"], [untrained])


# ---- the base


def test_a_fold_is_computed_once_and_is_the_sum_of_products(runs):
    run = runs(strategy={"name": "flora"})
    plan, strategy = run.plan, create("flora", {}, seed=0)
    deltas = {b.base_version: b.base_delta for _, b in run.sent}
    assert sorted(deltas) == [0, 1]
    last = strategy.init({n: v for n, v in first_sent(run).items()})
    last = replace(last, trees={**last.trees, "delta": deltas[1]}, values={**last.values, "base_version": 1, "round": 1})
    progress, _ = receive(Progress(round=1, server=last), strategy, plan.clients, plan.weights)
    again, _ = receive(progress, strategy, plan.clients, plan.weights)
    assert again.base_version == 1 and bits(again.base) == bits(progress.base), "the same fold is not taken twice"
    for module, pair in lowrank.pairs(deltas[1]).items():
        weight = plan.weights[f"{module}.weight"]
        expected = weight + lowrank.product(pair).reshape(weight.shape)
        np.testing.assert_array_equal(progress.base[f"{module}.weight"], expected.astype(np.float32))
        np.testing.assert_allclose(lowrank.product(lowrank.pairs(progress.folded)[module]), lowrank.product(pair), atol=1e-6)


def first_sent(run):
    return run.sent[0][1].adapter


def test_the_base_goes_back_to_the_original(plan):
    host = host_of(plan)
    name = "blocks.0.attn.qkv.weight"
    tree = initial_tree(host.model.outline, host.protocol, "GE", 1)
    request = [Scored(model_of="x", tree=tree, data_of=("GE",))]
    before = host.evaluate(request, "test", full=True)
    host.set_base({name: plan.weights[name] + 1})
    folded = host.evaluate(request, "test", full=True)
    host.set_base({"blocks.1.attn.qkv.weight": plan.weights["blocks.1.attn.qkv.weight"]})
    assert folded != before == host.evaluate(request, "test", full=True)
    assert np.array_equal(host.model.weights[name].numpy(), plan.weights[name])


def test_a_round_that_only_scores_leaves_what_is_kept_as_it_is(plan):
    """The driver keeps what it is told of a client: after a resume SCAFFOLD's c_k, and what a replaying liar repeats, would be gone."""
    host = host_of(plan)
    kept = ClientState(trees={"private": {}, "c_k": first_tree(host), "first": first_tree(host)}, round=0)
    host.restore({"GE": kept})
    (outcome,) = host.train(["GE"], [told(host, round=3, phases=(), scores=("received",))])
    assert outcome.state.trees is kept.trees and outcome.state.round == 3 and "score_received" in outcome.update.metrics
