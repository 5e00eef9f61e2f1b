"""`raylora run --plan`: what an experiment would do and need, from the manifest alone."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch

from raylora.cluster import resources
from raylora.config import Config
from raylora.core import sampling
from raylora.core.errors import InputError
from raylora.core.machine import free_bytes
from raylora.core.tree import match
from raylora.core.types import Task, Tree
from raylora.data.obtain import Say
from raylora.federation.build import build_model
from raylora.federation.protocol import initial_tree
from raylora.federation.rehearsal import Rehearsal
from raylora.federation.rounds import Progress, receive, run_round
from raylora.federation.spec import protocol_of
from raylora.method import caveats, make_strategy
from raylora.models import files
from raylora.models.stacked import StackedModel
from raylora.models.stages import Stage, first_trained, run_stages
from raylora.plan import Plan, opening
from raylora.planning import make_plan

TORCH_BYTES = 250 << 20  # a process with torch imported, as measured
REHEARSED = 2  # rounds: from the second on, methods that fold into the base send more


def describe(config: Config, say: Say = lambda what, done, total: None) -> dict[str, Any]:
    """Clients and their cases by split and class, parameters trained and sent, bytes a round, memory an actor needs, actors that fit.

    Data that are not prepared yet are prepared; nothing is trained. Base weights that are not there yet are said to be missing: a plan
    needs their shapes alone. Raises InputError for whatever else a run would refuse.
    """
    weights, (config, missing) = config.model.weights, _without_absent_weights(config)
    plan = make_plan(config, say)
    model = build_model(plan.spec.model, plan.weights)
    first = initial_tree(plan.outline, protocol_of(plan.spec), plan.clients[0].id, plan.spec.max_rank)
    rows, cohort = plan.cohort.rows.values(), plan.cohort
    (bytes_of_rounds, folds), memory = traffic(plan), actor_bytes(plan, model, first)
    return {
        "name": config.name,
        "task": config.task,
        "strategy": config.strategy.name,
        "rounds": config.training.rounds,
        "protocol": cohort.protocol.stamped() if cohort.protocol else None,
        "datasets": dict(sorted(Counter(row.dataset for row in rows).items())),
        "duplicate_pairs": len(cohort.pairs),
        "clients": _clients(plan),
        "held_out": list(plan.held_out),
        "left_out": dict(sorted(Counter(plan.left_out.values()).items())),
        "notes": [*plan.notes, *caveats(config, make_strategy(config, len(plan.clients)), len(plan.clients))],
        "crop": cohort.crops,
        "base": {
            "name": config.model.name,
            "size": config.model.size,
            "weights": weights,
            "missing": missing,
            "has_seen": list(plan.seen_cases),
        },
        "parameters": {
            "frozen": sum(v.size for v in plan.weights.values()),
            "trained": sum(first[name].size for name in trained(plan, first)),
        },
        "traffic": bytes_of_rounds,
        "traffic_in_all": _how_exact(plan, folds),
        "memory_bytes": memory,
        "actors": _actors(plan, sum(memory.values())),
    }


def _without_absent_weights(config: Config) -> tuple[Config, str | None]:
    """(the configuration, None), or without its weights if there is no such file, and the words about it."""
    if config.model.weights is None:
        return config, None
    try:
        files.find(config.model.weights, config.model.weights_folder, config.model.name)
    except InputError as error:
        return config.model_copy(update={"model": config.model.model_copy(update={"weights": None})}), str(error)
    return config, None


def _clients(plan: Plan) -> dict[str, dict[str, Any]]:
    """{client: {part: patients, "diseased": {part: patients}}}."""
    labels = plan.spec.diseased
    table: dict[str, dict[str, Any]] = {}
    for client, parts in plan.splits.items():
        table[client] = {part: len(ids) for part, ids in parts.items()}
        if labels:
            table[client]["diseased"] = {part: sum(labels[i] for i in ids) for part, ids in parts.items()}
    return table


def traffic(plan: Plan) -> tuple[list[dict[str, int]], bool]:
    """{"up", "down"} bytes of the first rounds, over all clients, and whether something is folded into the base. Counted where a run counts, on
    messages of clients that only pretend to train."""
    strategy = make_strategy(plan.config, len(plan.clients))
    executor = Rehearsal(plan.outline, protocol_of(plan.spec), plan.clients)
    rounds, sampled = [], plan.config.sampling
    progress = Progress(round=0, server=opening(strategy, plan.outline, plan.spec, plan.clients))
    progress, broadcasts = receive(progress, strategy, plan.clients, plan.weights)
    for t in range(min(REHEARSED, plan.config.training.rounds)):
        cohort = [c.id for c in sampling.cohort(plan.clients, sampled.kind, sampled.fraction, plan.config.seed, t)]
        progress, report = run_round(progress, broadcasts, strategy, plan.clients, cohort, executor)
        progress, broadcasts = receive(progress, strategy, plan.clients, plan.weights)
        rounds.append({"up": sum(c.bytes_up for c in report.clients), "down": sum(c.bytes_down for c in report.clients)})
    return rounds, progress.base_version > 0


def trained(plan: Plan, tree: Tree) -> set[str]:
    """The names of the first client's tree that are trained in some round: a method may freeze a factor, take turns, or go by stages."""
    found = set[str]()
    for task in _tasks(plan):
        found |= {name for phase in task.phases for name in match(tree, phase.trains)}
        if len(found) == len(tree):
            break
    return found


def _tasks(plan: Plan) -> Iterator[Task]:
    """What the first client is asked for, round by round."""
    strategy = make_strategy(plan.config, len(plan.clients))
    server = opening(strategy, plan.outline, plan.spec, plan.clients)
    for t in range(plan.config.training.rounds):
        yield strategy.broadcast(replace(server, values={**server.values, "round": t}), plan.clients[0]).task


def _how_exact(plan: Plan, folds: bool) -> str:
    """How the bytes of all rounds follow from those of the first two.

    "exactly"; "at most", where answers are not sent or not waited for, or ranks are pruned; "about", where rounds differ in what they ask for
    (a method may take turns, or go by stages) or in who is asked (with folds, those that were away are sent several).
    """
    faults, sampling = plan.config.faults, plan.config.sampling
    first, *later = _tasks(plan)
    alike = len({(tuple(phase.trains for phase in task.phases), task.uploads, task.scores) for task in later}) <= 1
    differ = folds or len({client.rank for client in plan.clients}) > 1
    drawn = sampling.fraction < 1 or faults.joins > 0
    if sampling.kind == "poisson" or (drawn and differ) or not alike:
        return "about"
    waits = sampling.buffer is None and math.isinf(sampling.deadline_s) and sampling.wait_for == 1
    return "exactly" if waits and not first.prunes and not max(faults.dropout, faults.joins, faults.leaves) else "at most"


def _actors(plan: Plan, needed: int) -> dict[str, Any]:
    """How many actors the run wants, and how many of them this machine has room for."""
    place, has, sites, stack = plan.config.placement, resources.local(), plan.spec.sites, plan.config.training.stack
    passive = [site.id for site in sites if not site.training]
    units = len(resources.units(sorted(site.id for site in sites), passive, 1 if stack == "auto" else stack))
    resources.require_share(place.gpus_per_client, plan.config.training.device)
    by_share = resources.fitting(has, place.cpus_per_client, place.gpus_per_client)
    by_memory = free_bytes() // needed
    return {
        "cpus": place.cpus_per_client,
        "gpus": place.gpus_per_client,
        "wanted": min(units, max(1, by_share) if place.clients_per_actor == "auto" else math.ceil(len(sites) / place.clients_per_actor)),
        "fit_here": min(by_share, by_memory),
        "fit_by_share": by_share,
        "fit_by_memory": by_memory,
    }


# ---- memory


def actor_bytes(plan: Plan, model: StackedModel, tree: Mapping[str, Any]) -> dict[str, int]:
    """An estimate by part: torch; the backbone; the studies of the actor with most of them (two frames: image and label); the trained
    tensors four times (value, gradient, two moments) for each client of a pass; the activations of one pass."""
    x, y, z = plan.spec.model.image_size
    each = sorted((len(s.training) + len(s.validation) + len(s.rating) + len(s.test) for s in plan.spec.sites), reverse=True)
    packed = plan.config.placement.clients_per_actor
    studies = sum(each[: 1 if packed == "auto" else packed])
    stack = 1 if plan.config.training.stack == "auto" else plan.config.training.stack
    element = {"float32": 4, "float64": 8, "bfloat16": 2}[plan.config.training.dtype]
    return {
        "torch": TORCH_BYTES,
        "backbone": element * sum(v.size for v in plan.weights.values()),
        "studies": studies * 2 * x * y * z * 5,
        "trained": stack * 16 * sum(v.size for v in tree.values()),
        "activations": stack * element * activations(plan, model, tuple(tree)),
    }


def activations(plan: Plan, model: StackedModel, trained: tuple[str, ...]) -> int:
    """Numbers held at the worst moment of one training batch of one client.

    What a stage from the first trained one on computes is kept for the backward pass, and its gradient is as large; what a frozen stage
    computes is gone with the next one. Counted by running the stages on tensors without storage. With `model.checkpointing` a block keeps
    its output alone, and one of them at a time all it computes.
    """
    backbone = model.backbone.to("meta")
    stages = backbone.stages()
    first = 0 if plan.spec.model.full else first_trained(stages, trained)
    counts = _outputs(backbone, stages, plan)
    blocks = [count for stage, count in zip(stages, counts, strict=True) if stage.block is not None]
    recomputed = plan.config.model.checkpointing
    kept = 0
    for number, (stage, (inside, output)) in enumerate(zip(stages, counts, strict=True)):
        if number >= first:
            kept += output if recomputed and stage.block is not None else inside
    again = max((inside for inside, _ in blocks), default=0) if recomputed else 0
    return max(2 * (kept + again), max((inside for inside, _ in counts[:first]), default=0))


def _outputs(backbone: torch.nn.Module, stages: list[Stage], plan: Plan) -> list[tuple[int, int]]:
    """For each stage: the numbers that all its layers put out together, and those that it hands on."""
    count = 0

    def add(module: torch.nn.Module, inputs: Any, output: Any) -> None:
        nonlocal count
        count += output.numel() if isinstance(output, torch.Tensor) else 0

    handles = [module.register_forward_hook(add) for module in backbone.modules() if not list(module.children())]
    channels = 2 if plan.spec.task == "disease" else 1
    tensors: tuple[torch.Tensor, ...] = (
        torch.empty(plan.config.training.batch_size, channels, *plan.spec.model.image_size, device="meta"),
    )
    found = []
    for stage in stages:
        count = 0
        tensors = run_stages([stage], tensors)
        found.append((count, sum(tensor.numel() for tensor in tensors)))
    for handle in handles:
        handle.remove()
    return found
