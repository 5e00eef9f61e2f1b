"""What a run asks of the machine, and whether that exists: checked before anything is started, because Ray would wait for ever."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from raylora.core.errors import InputError

if TYPE_CHECKING:
    from raylora.config import Training
    from raylora.federation.spec import SiteSpec
    from raylora.plan import Plan

PATIENCE = 0.5  # of a stack's own cost: how much longer than the least busy actor its home may be busy before it goes elsewhere


@dataclass(frozen=True, kw_only=True)
class Available:
    cpus: float
    gpus: float
    where: str  # for messages
    nodes: tuple[tuple[float, float], ...] = ()  # (CPUs, GPUs) of each machine; empty: they are one machine's


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the actors of one experiment need."""

    groups: tuple[tuple[str, ...], ...]  # the clients that are at home in each actor
    cpus: float  # of one actor
    gpus: float
    costs: Mapping[str, float] = field(default_factory=dict)  # of a client's round, in any unit; absent: 1
    passive: frozenset[str] = frozenset()  # clients that never train
    together: bool = False  # passes may bring any clients together

    def arranged(self, stack: int) -> Request:
        """The same actors, each the home of whole stacks: what trains, cut in the order of its ids."""
        everyone = sorted(client for group in self.groups for client in group)
        return replace(self, groups=balanced(units(everyone, self.passive, stack), self.cost, len(self.groups)))

    def cost(self, clients: Sequence[str]) -> float:
        return sum(self.costs.get(client, 1.0) for client in clients)

    def assigned(self, stacks: Sequence[Sequence[str]], whole: Sequence[bool] = ()) -> list[int]:
        """The actor of each stack of a round: where most of it is at home, unless that one would be busy while another had nothing to do.

        `whole` says of each actor whether it has the data of clients that are not at home in it (default: all have).
        """
        home = {client: index for index, group in enumerate(self.groups) for client in group}
        loads = [0.0] * len(self.groups)
        places = [0] * len(stacks)
        for number in sorted(range(len(stacks)), key=lambda i: (-self.cost(stacks[i]), stacks[i])):
            at_home = [sum(home[client] == index for client in stacks[number]) for index in range(len(loads))]
            able = [i for i in range(len(loads)) if not whole or whole[i] or at_home[i] == len(stacks[number])]
            own = min(able, key=lambda i: (-at_home[i], loads[i], i))
            idle = min(able, key=lambda i: (loads[i], i))
            cost = self.cost(stacks[number])
            places[number] = own if loads[own] <= loads[idle] + PATIENCE * cost else idle
            loads[places[number]] += cost
        return places


def local() -> Available:
    """This process's CPUs (its affinity, not the machine's) and visible GPUs."""
    return Available(cpus=len(os.sched_getaffinity(0)), gpus=_visible_gpus(), where="this machine")


def _visible_gpus() -> int:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([item for item in visible.split(",") if item.strip() not in ("", "-1")])
    return len([name for name in os.listdir("/dev") if name.startswith("nvidia") and name[6:].isdigit()]) if os.path.isdir("/dev") else 0


def request(
    weights: Mapping[str, float],
    *,
    cpus_per_client: float,
    gpus_per_client: float,
    clients_per_actor: int | str,
    available: Available,
    stack: int = 1,
    together: bool = False,
    passive: Collection[str] = (),
) -> Request:
    """Spread clients over actors, the heaviest first, and check that all actors fit at once.

    `weights` are the clients' expected costs. One pass at a time computes in an actor, so an actor needs one client's share; the clients of
    a pass (`stack` of them, in the order of their ids, `passive` ones apart) have one home. Raises InputError when the shares do not exist
    or a GPU share does not divide one.
    """
    require_share(gpus_per_client)
    fits = fitting(available, cpus_per_client, gpus_per_client)
    passes = units(sorted(weights), passive, stack)
    if clients_per_actor == "auto":
        count = max(1, min(len(passes), fits))
    else:
        count = min(len(passes), math.ceil(len(weights) / int(clients_per_actor)))
    if count > fits:
        packed = f"; placement.clients_per_actor={math.ceil(len(weights) / fits)} would fit" if fits else ""
        kinds = f"{count * cpus_per_client:g} CPUs" + (f" and {count * gpus_per_client:g} GPUs" if gpus_per_client else "")
        who = "1 actor needs" if count == 1 else f"{count} actors need"
        raise InputError(
            f"placement: {who} {kinds} (cpus_per_client={cpus_per_client:g}, gpus_per_client={gpus_per_client:g}), "
            f"{available.where} has {available.cpus:g} CPUs and {available.gpus:g} GPUs{on_nodes(available)}{packed}"
        )
    found = Request(
        groups=(), cpus=cpus_per_client, gpus=gpus_per_client, costs=dict(weights), passive=frozenset(passive), together=together
    )
    return replace(found, groups=balanced(passes, found.cost, count))


def require_share(gpus: float, device: str = "auto") -> None:
    """Raise InputError for a share of GPUs that no actor can have, and for a GPU that is asked for without one."""
    if device == "cuda" and not gpus:
        raise InputError("placement.gpus_per_client: expected a share (1, or 1/n) with training.device: cuda, found 0")
    if 0 < gpus < 1 and abs(round(1 / gpus) - 1 / gpus) > 1e-6:
        raise InputError(
            f"placement.gpus_per_client: a share of a GPU must be 1/n (0.5, 0.25, ...), found {gpus:g}: Ray would wait for ever"
        )
    if gpus > 1 and gpus != int(gpus):
        raise InputError(f"placement.gpus_per_client: above one it must be a whole number, found {gpus:g}")


def fitting(available: Available, cpus: float, gpus: float) -> int:
    """How many actors of this size fit. An actor does not span two machines, nor a share of a GPU two GPUs."""
    return sum(_on_one(*node, cpus, gpus) for node in available.nodes or ((available.cpus, available.gpus),))


def _on_one(has_cpus: float, has_gpus: float, cpus: float, gpus: float) -> int:
    by_cpu = math.floor(has_cpus / cpus + 1e-9)
    if not gpus:
        return by_cpu
    by_gpu = math.floor(has_gpus) * round(1 / gpus) if gpus < 1 else math.floor(has_gpus / gpus)
    return min(by_cpu, by_gpu)


def on_nodes(available: Available) -> str:
    """For messages: `` on 2 nodes``."""
    return f" on {len(available.nodes)} nodes" if len(available.nodes) > 1 else ""


def balanced(units: Sequence[tuple[str, ...]], cost: Callable[[tuple[str, ...]], float], count: int) -> tuple[tuple[str, ...], ...]:
    """Longest processing time first: each unit to the actor with the least to do so far."""
    loads = [0.0] * count
    groups: list[list[str]] = [[] for _ in range(count)]
    for unit in sorted(units, key=lambda unit: (-cost(unit), unit)):
        target = min(range(count), key=lambda i: (loads[i], len(groups[i]), i))
        groups[target] += unit
        loads[target] += cost(unit)
    return tuple(tuple(sorted(group)) for group in groups)


def calls(places: Sequence[int], parts: Sequence[float]) -> list[list[int]]:
    """The numbers of the passes that each call asks for: those that follow each other in one place and fill at most one call.

    places: where each pass is done. parts: how much of a call each one fills; one that fills more has a call to itself.
    """
    found: list[list[int]] = []
    latest: dict[int, tuple[list[int], float]] = {}  # place -> its last call, and how full that is
    for number, (place, part) in enumerate(zip(places, parts, strict=True)):
        call, full = latest.get(place, ([], 0.0))
        if not call or not full + part <= 1.0:
            call, full = [], 0.0
            found.append(call)
        call.append(number)
        latest[place] = call, full + part
    return found


def units(clients: Sequence[str], passive: Collection[str], stack: int) -> list[tuple[str, ...]]:
    """Clients that share a pass when all take part; those that never train are each by itself."""
    training = [client for client in clients if client not in passive]
    stacks = [tuple(training[i : i + stack]) for i in range(0, len(training), stack)]
    return [*stacks, *((client,) for client in clients if client in passive)]


def request_of(plan: Plan, has: Available, resume: bool = False) -> Request:
    """The actors of a plan. A run that goes on may find a smaller machine: then more clients share an actor than it asked for.

    Raises InputError for what does not fit, and for a GPU that is asked for without a share: Ray would not know that it is taken.
    """
    place = plan.config.placement
    require_share(place.gpus_per_client, plan.config.training.device)
    frames = 2 if plan.config.task == "segmentation" else 1
    weights = {site.id: round_cost(site, plan.config.training, frames) for site in plan.spec.sites}
    try:
        return _request(plan, weights, place.clients_per_actor, has)
    except InputError:
        if not resume:
            raise
        return _request(plan, weights, "auto", has)


def _request(plan: Plan, weights: Mapping[str, float], clients_per_actor: int | str, has: Available) -> Request:
    place, stack = plan.config.placement, plan.config.training.stack
    return request(
        weights,
        cpus_per_client=place.cpus_per_client,
        gpus_per_client=place.gpus_per_client,
        clients_per_actor=clients_per_actor,
        available=has,
        stack=1 if stack == "auto" else stack,
        together=stack != 1,
        passive=[site.id for site in plan.spec.sites if not site.training],
    )


def round_cost(site: SiteSpec, training: Training, frames: int) -> float:
    """What a site computes in a round, about, in training samples: those it trains on, and a third of each one it scores.

    Its rating cases are scored twice, the test patients once in the whole run.
    """
    if not site.training:
        trained = 0.0
    elif training.local_steps is not None:
        trained = float(training.local_steps * training.batch_size)
    else:
        trained = float((training.local_epochs or 1) * frames * len(site.training))
    return trained + frames * (2 * len(site.rating) + len(site.test) / training.rounds) / 3
