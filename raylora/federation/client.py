"""A client's whole round: what it holds, what it is told, what it sends back, what it keeps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from raylora.core import lowrank
from raylora.core.byzantine import Attack
from raylora.core.compress import compressed
from raylora.core.errors import RunError
from raylora.core.seeds import generator
from raylora.core.tree import finite, freeze, match
from raylora.core.types import Broadcast, ClientState, ClientUpdate, Tree
from raylora.federation.protocol import Protocol, compose, initial_tree
from raylora.models.stacked import StackedModel
from raylora.training.inference import EvalCase, rating_scores
from raylora.training.local import Job, train
from raylora.training.losses import LOSSES
from raylora.training.samples import Samples


@dataclass(frozen=True, kw_only=True)
class Shard:
    """A site's data. Rating cases serve the rating score and nothing else; test cases are touched after the last round only."""

    training: Samples
    patients: int  # training patients
    validation: Sequence[EvalCase] = ()
    rating: Sequence[EvalCase] = ()
    test: Sequence[EvalCase] = ()


@dataclass(frozen=True, kw_only=True)
class Site:
    """One client."""

    id: str
    rank: int
    shard: Shard
    attack: Attack | None = None  # of a byzantine client: how it lies about what it has learnt


def work(
    model: StackedModel,
    protocol: Protocol,
    sites: Sequence[Site],
    states: Sequence[ClientState | None],
    broadcasts: Sequence[Broadcast],
) -> list[tuple[ClientUpdate, ClientState]]:
    """One round of the clients that share this pass: receive, score, train, score, split into what is sent and what is kept.

    The base must already be at the broadcasts' version. Raises RunError for a loss or a result that is not finite.
    """
    trees = [
        compose(model.outline, protocol, site.id, site.rank, state, broadcast.adapter)
        for site, state, broadcast in zip(sites, states, broadcasts, strict=True)
    ]
    task = broadcasts[0].task
    metrics: list[dict[str, float]] = [{} for _ in sites]
    for site, broadcast, own in zip(sites, broadcasts, metrics, strict=True):
        for name in broadcast.task.scores:
            if name in broadcast.extra and site.shard.rating:
                own[f"score_{name}"] = _shown(model, protocol, site, broadcast.extra[name])
    if "received" in task.scores:
        _score(model, protocol, sites, trees, protocol.gates, metrics, "score_received")
    after: list[Mapping[str, np.ndarray]] = list(trees)
    steps = [0] * len(sites)
    controls = [
        {**b.extra, **({"c_k": s.trees["c_k"]} if s is not None and "c_k" in s.trees else {})}
        for s, b in zip(states, broadcasts, strict=True)
    ]
    if task.phases:
        jobs = [
            Job(client=site.id, samples=site.shard.training, tree=tree, alpha=protocol.alpha, extra=extra)
            for site, tree, extra in zip(sites, trees, controls, strict=True)
        ]
        results = train(model, jobs, task.phases, protocol.settings, LOSSES[protocol.task], seed=protocol.seed, round=task.round)
        after = [freeze(result.tree) for result in results]  # whatever it was trained in, a tree is float32
        for own, result in zip(metrics, results, strict=True):
            own.update(result.metrics)
        steps = [result.steps for result in results]
    if "trained" in task.scores:
        _score(model, protocol, sites, after, protocol.gates, metrics, "score_trained")
    return [
        parted(protocol, site, state, broadcast, tree, result, own, extra, count)
        for site, state, broadcast, tree, result, own, extra, count in zip(
            sites, states, broadcasts, trees, after, metrics, controls, steps, strict=True
        )
    ]


def parted(
    protocol: Protocol,
    site: Site,
    state: ClientState | None,
    broadcast: Broadcast,
    received: Tree,
    trained: Tree,
    metrics: Mapping[str, float],
    controls: Mapping[str, Tree],
    steps: int,
) -> tuple[ClientUpdate, ClientState]:
    """What is sent and what is kept."""
    task = broadcast.task
    for name, value in trained.items():
        if not finite(value):
            raise RunError(f"round {task.round + 1}, client {site.id}: {name} is not finite after training; try a smaller training.lr")
    uploads = set(match(trained, task.uploads))
    sent_away = uploads - set(match(trained, task.keeps))
    trees: dict[str, Tree] = {"private": {name: value for name, value in trained.items() if name not in sent_away}}
    if state is not None and "c_k" in state.trees:  # where a round goes without it, or trains other names, it stays
        trees["c_k"] = state.trees["c_k"]
    extra: dict[str, Tree] = {}
    if task.phases and "control" in task.phases[-1].terms and steps:
        names = match(trained, task.phases[-1].trains)
        before = controls.get("c_k", {})
        server = controls["c"]
        rate = steps * protocol.settings.rate(task.round)
        after = {}
        for name in sorted(names):  # option II of SCAFFOLD: c_k+ = c_k - c + (w_received - w_trained) / (K eta)
            step = (received[name] - trained[name]) / np.float32(rate)
            after[name] = (before.get(name, np.float32(0)) - server.get(name, np.float32(0)) + step).astype(np.float32)
        trees["c_k"] = {**before, **after}
        extra["delta_c"] = {name: after[name] - before.get(name, np.float32(0)) for name in after}
    sent_up: Tree = {name: trained[name] for name in sorted(uploads)}
    if site.attack is not None and task.phases:
        trees["first"] = sent_up if state is None else state.trees.get("first", sent_up)
        sent_up = site.attack.sent(sent_up, {name: received[name] for name in sent_up}, trees["first"], task.round, site.id)
    update = ClientUpdate(
        client_id=site.id,
        num_examples=site.shard.patients,
        adapter=sent_up,
        metrics=metrics,
        extra=extra,
        scaling=protocol.alpha / (lowrank.rank_of(trained) or site.rank),  # a strategy may have pruned the rank
    )
    if (compress := protocol.compress.compress) is not None:
        error = state.trees.get("error", {}) if state is not None and protocol.compress.remembers else {}
        draw = generator(protocol.seed, "compress", task.round, site.id)
        sent = compressed(update, {name: received[name] for name in uploads}, error, compress, draw)
        update = sent.update
        if protocol.compress.remembers:
            trees["error"] = sent.error
    if state is not None and not task.phases:  # it has only scored: what it keeps is what it kept
        return update, replace(state, base_version=broadcast.base_version, round=task.round)
    return update, ClientState(trees=trees, base_version=broadcast.base_version, round=task.round)


def _shown(model: StackedModel, protocol: Protocol, site: Site, other: Tree) -> float:
    """The score of what this client was shown: the base with another client's pairs of unit scale, and its plain parts. Predictions
    that are not finite are as bad as can be: 0 (a client must not be blamed for what another one sent)."""
    rank = next(len(value) for name, value in other.items() if name.endswith(".lora_A"))
    tree = initial_tree(model.outline, protocol, site.id, min(rank, protocol.max_rank))
    own_scale = np.float32(rank / protocol.alpha)  # the model multiplies by alpha / rank
    tree |= {name: value * own_scale if name.endswith(".lora_B") else value for name, value in other.items()}
    model.load([tree], [protocol.alpha])
    model.gate({})
    score = rating_scores(model, [site.shard.rating], protocol.task, protocol.depth, protocol.eval_batch)[0]
    return score if math.isfinite(score) else 0.0


def _score(
    model: StackedModel,
    protocol: Protocol,
    sites: Sequence[Site],
    trees: Sequence[Tree],
    gates: Mapping[str, float],
    metrics: list[dict[str, float]],
    key: str,
) -> None:
    able = [k for k, site in enumerate(sites) if site.shard.rating]
    if able:
        model.load([trees[k] for k in able], [protocol.alpha] * len(able))
        model.gate(gates)
        cases = [sites[k].shard.rating for k in able]
        for k, score in zip(able, rating_scores(model, cases, protocol.task, protocol.depth, protocol.eval_batch), strict=True):
            metrics[k][key] = score
