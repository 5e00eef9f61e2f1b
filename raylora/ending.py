"""What comes of the rounds: every client's model, its validation after a round, and the end: test scores, adapters, the summary."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from raylora import identity
from raylora.core import lowrank
from raylora.core.files import without_nan, write_json
from raylora.core.types import Broadcast, Strategy, Tree
from raylora.federation.answers import EvalRow, Scored
from raylora.federation.protocol import compose, initial_tree
from raylora.federation.rounds import Executor, Progress, Rows
from raylora.federation.spec import protocol_of
from raylora.method import epsilon
from raylora.metrics import matrix
from raylora.metrics.classification import choose_threshold
from raylora.metrics.rows import CaseRow
from raylora.models import peft
from raylora.models.arrays import write_arrays
from raylora.plan import Plan
from raylora.provenance import code, environment, versions
from raylora.tracking.record import Record


@dataclass(frozen=True, kw_only=True)
class Standing:
    """A federation between two rounds or after the last, and where its models are scored and recorded."""

    plan: Plan
    strategy: Strategy
    progress: Progress
    broadcasts: Mapping[str, Broadcast]  # client -> what it is sent next
    executor: Executor
    record: Record
    started: float  # on the monotonic clock, as many seconds ago as the run has taken, whatever interrupted it
    notes: Mapping[str, Any]  # for the summary, from whoever started the run


# ---- models to score


def _models(standing: Standing) -> dict[str, Tree]:
    """{"global": ..., client id: ...} as each would be used now. The global one is what a newcomer is sent, with private parts as they start.
    Clients whose model is the global one are left out."""
    plan, strategy, progress = standing.plan, standing.strategy, standing.progress
    outline, protocol = plan.outline, protocol_of(plan.spec)
    largest = max(plan.clients, key=lambda c: c.rank)
    newcomer = strategy.broadcast(progress.server, replace(largest, id="newcomer")).adapter
    trees: dict[str, Tree] = {"global": compose(outline, protocol, largest.id, largest.rank, None, newcomer)}
    if not strategy.pools_data:
        for client in plan.clients:
            sent = standing.broadcasts[client.id].adapter
            tree = compose(outline, protocol, client.id, client.rank, progress.states.get(client.id), sent)
            if not _same_model(tree, trees["global"], strategy):
                trees[client.id] = tree
    return trees


def _same_model(tree: Tree, other: Tree, strategy: Strategy) -> bool:
    """Whether two trees are one function: equal, or different only in private adapters whose product is zero."""
    if strategy.router or strategy.gates or (strategy.mixed_ranks and any(tree[n].shape != other[n].shape for n in tree)):
        return False
    silent = {n.replace(".lora_B", ".lora_A") for n in tree if n.endswith(".lora_B") and not np.any(tree[n]) and not np.any(other[n])}
    return all(n in silent or np.array_equal(tree[n], other[n]) for n in tree)


def _requests(trees: Mapping[str, Tree], gates: Mapping[str, float], data_of: Mapping[str, tuple[str, ...]]) -> list[Scored]:
    """The global part alone is used as it is; a client's full model with its gates."""
    return [
        Scored(model_of=name, tree=tree, gates={} if name == "global" else gates, data_of=data_of[name])
        for name, tree in trees.items()
        if data_of.get(name)
    ]


def validate(standing: Standing) -> Rows:
    """In-client validation: each client's own model on its own validation cases; the global one at all of them. Asked for now; the answer
    waits for the rows."""
    trees, homes = _models(standing), standing.plan.homes
    requests = _requests(trees, standing.strategy.gates, {name: homes if name == "global" else (name,) for name in trees})
    under_way = standing.executor.evaluate(requests, "validation", full=False)
    shared = [client for client in homes if client not in trees]

    def rows() -> list[EvalRow]:
        found = under_way()
        return found + [(c, c, *row[2:]) for c in shared for row in found if row[0] == "global" and row[1] == c]

    return rows


def validation_scores(rows: Sequence[EvalRow], task: str) -> dict[str, dict[str, float]]:
    """{client: {metric: value}} of each client's own model."""
    scores: dict[str, dict[str, float]] = {}
    for client in sorted({row[1] for row in rows}):
        own = [row for row in rows if row[0] == row[1] == client]
        if task == "segmentation":
            values = [row[6] for row in own if row[5] == "dice" and row[4] == "all"]
            scores[client] = {"dice": float(np.mean(values))} if values else {}
        else:
            p = {row[2]: row[6] for row in own if row[5] == "probability"}
            y = {row[2]: row[6] for row in own if row[5] == "label"}
            likelihood, right = [p[k] if y[k] else 1 - p[k] for k in y], [(p[k] >= 0.5) == bool(y[k]) for k in y]
            scores[client] = {"likelihood": float(np.mean(likelihood)), "accuracy": float(np.mean(right))} if y else {}
    return scores


# ---- the end


def finish(standing: Standing) -> dict[str, Any]:
    """Score the last round's models on the test cases, once; write adapters, cases and summary. Returns the summary."""
    plan, record = standing.plan, standing.record
    config, t = plan.config, plan.config.training.rounds - 1
    trees = _models(standing)
    table = _tested(standing, trees, t)
    hashes = _write_adapters(standing, trees)
    clients = list(plan.homes)
    final = matrix.final(table, task=config.task, clients=clients, seed=config.seed, replicates=config.evaluation.bootstrap)
    summary = {
        "status": "finished",
        **_about(standing),
        "held_out": list(plan.held_out),
        "final": final,
        "cross_client": matrix.cross_client(table, metric=matrix.PRIMARY[config.task], clients=clients),
        "adapter_sha256": hashes,
        "by_dataset": matrix.by_group(table, task=config.task, clients=clients, group_of=plan.cohort.datasets)
        if plan.cohort.several
        else None,
        "protocol": {**plan.cohort.protocol.stamped(), "rating_to_training": config.data.rating_to_training}
        if plan.cohort.protocol
        else None,
        "crop": plan.cohort.crops,
        "cut_studies": list(plan.cohort.cut),
        "notes": list(plan.notes),
        "patients": {client: {part: len(ids) for part, ids in parts.items()} for client, parts in plan.splits.items()},
        "base": {"weights": config.model.weights, "sha256": peft.hash_of(plan.weights), "has_seen": list(plan.seen_cases)},
        "parameters": {
            "sent": sum(v.size for v in standing.broadcasts[plan.clients[0].id].adapter.values()),
            "frozen": sum(v.size for v in plan.weights.values()),
        },
    }
    if config.task == "segmentation" and config.evaluation.overlays:
        _overlays(standing, trees, table)
    return _write_summary(record, summary)


def end_early(standing: Standing) -> dict[str, Any]:
    """What is left of an experiment that was asked to stop after a round: adapters, the validation rows of its rounds, and a summary without
    test scores, which is returned."""
    standing.record.write_cases(())
    hashes = _write_adapters(standing, _models(standing))
    summary = {"status": "pruned", **_about(standing), "stopped_after": standing.progress.round, "adapter_sha256": hashes}
    return _write_summary(standing.record, summary)


def _write_summary(record: Record, summary: Mapping[str, Any]) -> dict[str, Any]:
    """Write it, and beside it what was installed. Returns it as it will be read."""
    (record.folder / "environment.txt").write_text(environment(), encoding="utf-8")
    write_json(record.folder / "summary.json", summary)
    return without_nan(summary)


def _tested(standing: Standing, trees: Mapping[str, Tree], t: int) -> list[CaseRow]:
    """All rows of `cases.parquet`, which is written: every model and the frozen one on everyone's test cases after round `t`."""
    plan, executor, record = standing.plan, standing.executor, standing.record
    everyone = (*plan.homes, *plan.held_out)
    test = executor.evaluate(_requests(trees, standing.strategy.gates, dict.fromkeys(trees, everyone)), "test", full=True)()
    executor.set_base({})
    untrained = initial_tree(plan.outline, protocol_of(plan.spec), plan.clients[0].id, plan.spec.max_rank)
    frozen = Scored(model_of="frozen", tree=untrained, data_of=everyone)
    test += executor.evaluate([frozen], "test", full=True)()
    validation = executor.evaluate([replace(frozen, data_of=plan.homes)], "validation", full=False)()
    executor.set_base(standing.progress.base)
    own = [client for client in plan.homes if client not in trees]
    test += [(c, d, *row[2:]) for c in own for d in everyone for row in test if row[0] == "global" and row[1] == d]
    record.keep_cases(t + 1, [(t, "validation", *row) for row in validation])
    final_rows: list[tuple[Any, ...]] = [(t, "test", *row) for row in sorted(test, key=lambda row: row[:6])]
    rows = record.write_cases(final_rows)
    if plan.config.task == "disease":
        thresholds = sorted(_thresholds(rows, t).items())
        final_rows += [(t, "validation", name, "-", "-", "-", "diseased", "threshold", value) for name, value in thresholds]
        rows = record.write_cases(final_rows)
    return [CaseRow(*row) for row in rows]


def _thresholds(rows: Sequence[tuple[Any, ...]], t: int) -> dict[str, float]:
    """Each model's threshold from its validation cases: a client's own, or those of all clients for the global and the frozen model. A model
    whose cases lack a class has none."""
    found: dict[str, dict[tuple[str, str], dict[str, float]]] = {}
    for round, split, model_of, data_of, patient, _, _, metric, value in rows:
        if split == "validation" and round == t and metric in ("probability", "label"):
            found.setdefault(model_of, {}).setdefault((data_of, patient), {})[metric] = value
    chosen = {
        name: choose_threshold(np.array([c["label"] for c in cases.values()]), np.array([c["probability"] for c in cases.values()]))
        for name, cases in found.items()
    }
    return {name: threshold for name, threshold in chosen.items() if threshold is not None}


def _about(standing: Standing) -> dict[str, Any]:
    """What a summary says of any run, whatever its end."""
    plan, progress, config = standing.plan, standing.progress, standing.plan.config
    actors = standing.executor.describe()
    return {
        "schema": 1,
        "name": config.name,
        "task": config.task,
        "strategy": config.strategy.name,
        "seed": config.seed,
        "rounds": config.training.rounds,
        "clients": list(plan.homes),
        "bytes_up": progress.bytes_up,
        "bytes_down": progress.bytes_down,
        "epsilon": epsilon(config, progress.round, len(plan.clients)),
        "wall_seconds": time.monotonic() - standing.started,
        "virtual_seconds": progress.virtual_s if plan.config.clock_runs else None,
        "faults": plan.dials.describe(),
        "ranks": {client.id: client.rank for client in plan.clients},
        "driver": {},
        "actors": actors,
        "mlflow": None,
        "numerics": {
            "device": " and ".join(sorted({str(actor["device"]) for actor in actors})),
            "threads": config.training.threads,
            "dtype": config.training.dtype,
            "stack": config.training.stack,
            "cache": identity.features(plan) or {"why": plan.no_cache},
            "torch": versions()["torch"],
        },
        "versions": versions(),
        "code": code(),
        "config_sha256": config.sha256(),
        "data_sha256": plan.data_sha256,
        **standing.notes,
    }


def _write_adapters(standing: Standing, trees: Mapping[str, Tree]) -> dict[str, str]:
    """One folder a model: everything that was added to the original base. Returns their hashes."""
    plan, strategy, outline = standing.plan, standing.strategy, standing.plan.outline
    folder = standing.record.folder / "adapters"
    kernels = {path: layer.kernel for path, layer in outline.layers.items() if layer.kernel}
    about = {"base": plan.config.model.weights or ""}
    hashes = {}
    for name in ("global", *([] if strategy.pools_data else [c.id for c in plan.clients])):
        tree = trees.get(name, trees["global"])
        plain = {n: v for n, v in tree.items() if n in outline.plain}
        factors = {a: lowrank.pairs(tree, a) for a in strategy.adapters}
        scalings = {a: plan.config.lora.alpha / len(next(iter(pairs.values()))[0]) for a, pairs in factors.items()}
        if strategy.router:
            apart = {a or "own": peft.combined(tree, {}, {a: scaling}, {}) for a, scaling in scalings.items()}
            router = {n: v for n, v in tree.items() if n.startswith("router.")}
            hashes[name] = peft.write_routed(folder / name, apart, router, plain, kernels, about)
            continue
        used = {a: s for a, s in scalings.items() if name != "global" or not a or any(np.any(b) for _, b in factors[a].values())}
        pairs = peft.combined(tree, standing.progress.folded, used, {} if name == "global" else strategy.gates)
        hashes[name] = peft.write_folder(folder / name, pairs, plain, kernels, about)
    return hashes


def _overlays(standing: Standing, trees: Mapping[str, Tree], table: Sequence[CaseRow]) -> None:
    """Images, predictions and truths of the best, median and worst test patients, for the report's pictures."""
    scores = sorted(
        {
            (r.value, r.data_of, r.patient)
            for r in table
            if r.split == "test" and r.model_of == r.data_of and r.metric == "dice" and r.structure == "all"
        }
    )
    if not scores:
        return
    count = standing.plan.config.evaluation.overlays
    places = np.linspace(0, len(scores) - 1, count) if count > 1 else [(len(scores) - 1) / 2]
    chosen = sorted({round(i) for i in places}, reverse=True)
    arrays: dict[str, np.ndarray] = {}
    for i in chosen:
        _, client, patient = scores[i]
        name = client if client in trees else "global"
        (request,) = _requests({name: trees[name]}, standing.strategy.gates, {name: (client,)})
        for key, value in standing.executor.predictions(request, client, patient).items():
            arrays[f"{client}/{patient}/{key}"] = np.ascontiguousarray(value)
    folder = standing.record.folder / "plots"
    folder.mkdir(exist_ok=True)
    write_arrays(folder / "overlays.safetensors", arrays)
