"""`raylora run --plan`: what an experiment would do and need, from the manifest alone."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import torch

from raylora.cluster import resources
from raylora.config import Config
from raylora.core import payload
from raylora.experiment import Plan, make_plan, make_strategy
from raylora.federation.client import initial_tree
from raylora.federation.spec import build_model, protocol_of
from raylora.models.stages import run_stages

TORCH_BYTES = 250 << 20  # a process with torch imported, as measured


def describe(config: Config) -> dict[str, Any]:
    """Clients and their cases by split and class, parameters trained and sent, bytes of a first round, memory of an actor, actors that fit."""
    plan = make_plan(config)
    strategy = make_strategy(config, len(plan.clients))
    model = build_model(plan.spec.model, plan.weights)
    first = initial_tree(model, protocol_of(plan.spec), plan.clients[0].id, plan.spec.max_rank)
    state = strategy.init(first)
    broadcasts = {client.id: strategy.broadcast(state, client) for client in plan.clients}
    per_client = {client: sum(v.size for v in b.adapter.values()) for client, b in broadcasts.items()}
    place, has = config.placement, resources.local()
    return {
        "name": config.name,
        "strategy": config.strategy.name,
        "rounds": config.training.rounds,
        "clients": _clients(plan),
        "left_out": dict(Counter(plan.left_out.values())),
        "parameters": {"frozen": sum(v.size for v in plan.weights.values()), "trained": sum(v.size for v in first.values()), "sent": per_client},
        "bytes_down_first_round": sum(payload.bytes_of(b) for b in broadcasts.values()),
        "memory_of_an_actor_bytes": actor_bytes(plan, first),
        "actors_that_fit_here": resources.fitting(has, place.cpus_per_client, place.gpus_per_client),
        "actors_wanted": len(plan.spec.sites) if place.clients_per_actor == "auto" else math.ceil(len(plan.spec.sites) / place.clients_per_actor),
    }


def _clients(plan: Plan) -> dict[str, Any]:
    labels = plan.spec.diseased
    table: dict[str, Any] = {}
    for client, parts in plan.splits.items():
        table[client] = {part: len(ids) for part, ids in parts.items()}
        if labels:
            table[client]["diseased"] = {part: sum(labels[i] for i in ids) for part, ids in parts.items()}
    return table


def actor_bytes(plan: Plan, tree: dict[str, Any]) -> int:
    """An estimate: torch, the backbone, the largest shard, four copies of the trained tensors (value, gradient, two moments), and the
    activations of one training batch, counted by running the stages on tensors without storage."""
    x, y, z = plan.spec.model.image_size
    studies = max(len(site.training) + len(site.validation) + len(site.rating) + len(site.test) for site in plan.spec.sites)
    shard = studies * 2 * x * y * z * 5  # two frames: float32 image and label
    weights = 4 * sum(v.size for v in plan.weights.values())
    return TORCH_BYTES + weights + shard + 16 * sum(v.size for v in tree.values()) + activation_bytes(plan)


def activation_bytes(plan: Plan) -> int:
    """Bytes of every module's output over one training batch."""
    backbone = build_model(plan.spec.model).backbone.to("meta")
    count = 0

    def add(module: torch.nn.Module, inputs: Any, output: Any) -> None:
        nonlocal count
        if isinstance(output, torch.Tensor) and not list(module.children()):
            count += output.numel() * 4

    handles = [module.register_forward_hook(add) for module in backbone.modules()]
    channels = 2 if plan.spec.task == "disease" else 1
    image = torch.empty(plan.config.training.batch_size, channels, *plan.spec.model.image_size, device="meta")
    run_stages(backbone.stages(), (image,))
    for handle in handles:
        handle.remove()
    return count
