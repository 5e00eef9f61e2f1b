"""The dials of a configuration (`faults`, `network`, what `sampling` waits for) as values of `core`; what does not fit is refused.

Everything here is decided before a round, from (seed, round, client): no executor and no actor has a say in it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from raylora.config import Config, Faults, Network, Training
from raylora.core import faults as drawn
from raylora.core import sampling
from raylora.core import tree as trees
from raylora.core.byzantine import Attack
from raylora.core.clock import Conditions, Line, Trip, Waiting
from raylora.core.errors import InputError
from raylora.core.types import Client, ClientUpdate, State, Strategy
from raylora.data.cases import STRUCTURES
from raylora.data.damage import CLEAN, Damage


@dataclass(frozen=True, kw_only=True)
class Dials:
    """What an experiment's clients meet, round after round."""

    config: Config
    steps: Mapping[str, int]  # client -> local steps of a round
    tenures: Mapping[str, tuple[int, int]]
    damages: Mapping[str, Damage] = field(default_factory=dict)  # of those whose data are used

    def cohort(self, clients: Sequence[Client], round: int) -> list[str]:
        """The clients that are asked in a round: drawn among those that are there."""
        there = set(drawn.attendance(self.tenures, round))
        s = self.config.sampling
        present = [client for client in clients if client.id in there]
        return [client.id for client in sampling.cohort(present, s.kind, s.fraction, self.config.seed, round)] if present else []

    def staying(self, clients: Sequence[Client], round: int) -> list[Client]:
        """Those who are there in a round, or still to come."""
        return [client for client in clients if self.tenures.get(client.id, (0, round + 1))[1] > round]

    def conditions(self, asked: Sequence[str], round: int) -> Conditions:
        """What a round meets."""
        config, rates = self.config, _rates(self.config)
        days = {client: drawn.day(rates, config.seed, round, client) for client in asked}
        turns = {client: drawn.turn(config.seed, round, client) for client in asked}
        trips = {client: self._trip(client, day, turns[client]) for client, day in days.items()} if self.config.clock_runs else {}
        return Conditions(
            dropped=frozenset(client for client, day in days.items() if day.drops),
            trips=trips,
            waiting=Waiting(share=config.sampling.wait_for, deadline_s=config.sampling.deadline_s),
        )

    def takes_no_time(self, client: str) -> bool:
        """Whether the client answers at once, in rounds in which nothing befalls it."""
        return not self.config.faults.late_s and self._trip(client, drawn.Day()).seconds(1, 1) == 0

    def _trip(self, client: str, day: drawn.Day, turn: float = 0.0) -> Trip:
        n, seed = self.config.network, self.config.seed
        compute_s = self.steps[client] * n.step_s * day.slowness / speed_of(n, seed, client)
        return Trip(line=line_of(n, seed, client), compute_s=compute_s, wait_s=day.late_s + day.outage_s, turn=turn)

    def fewest(self, clients: Sequence[Client]) -> int:
        """The smallest number of answers, above none, that the server may have to work with in a round."""
        s, counts = self.config.sampling, []
        if s.buffer is not None or not math.isinf(s.deadline_s):
            return 1
        for round in range(self.config.training.rounds):
            asked = self.cohort(clients, round)
            answering = sum(not drawn.day(_rates(self.config), self.config.seed, round, client).drops for client in asked)
            counts.append(min(answering, math.ceil(s.wait_for * len(asked) - 1e-9)))
        return min((count for count in counts if count), default=0)

    def describe(self) -> dict[str, dict[str, Any]] | None:
        """{client: what was drawn for it once}, for the record; None where nothing was."""
        config, found = self.config, {}
        lying = attacks(config, sorted(self.damages or self.steps))  # drawn among the clients, not for a pool of all data
        liars = {client: attack for client, attack in lying.items() if client in self.steps or attack.kind == "label_flip"}
        for client in sorted({*self.steps, *self.damages}):
            about: dict[str, Any] = {}
            damage = self.damages.get(client, CLEAN)
            if self.config.clock_runs and client in self.steps:
                line = line_of(config.network, config.seed, client)
                about |= {"up_mbit": line.up_mbit, "down_mbit": line.down_mbit, "speed": speed_of(config.network, config.seed, client)}
            if self.tenures.get(client, (0, config.training.rounds)) != (0, config.training.rounds):
                about["rounds"] = list(self.tenures[client])
            if client in liars:
                about["attack"] = liars[client].kind
            if damage.contour_mm:
                about["contour_mm"] = damage.contour_mm
            if damage.left_out:
                about["left_out"] = next(name for name, value in STRUCTURES.items() if value == damage.left_out)
            if about:
                found[client] = about
        return found or None


def make_dials(config: Config, training: Mapping[str, Sequence[str]], damaged: Mapping[str, Damage]) -> Dials:
    """The dials. training: client that trains -> its studies; damaged: client -> what is wrong with its data.

    Raises InputError for what does not fit together.
    """
    f, s = config.faults, config.sampling
    _refuse_unknown(config.network, list(training))
    steps = {
        client: local_steps(config.training, samples(config.task, ids, damaged.get(client, CLEAN))) for client, ids in training.items()
    }
    tenures = drawn.tenure(training, f.joins, f.leaves, config.training.rounds, config.seed)
    dials = Dials(config=config, steps=steps, tenures=tenures, damages=damaged)
    early = {"sampling.wait_for": s.wait_for < 1, "sampling.buffer": s.buffer is not None and s.buffer < len(training)}
    for key, given in early.items():
        if given and not dials.config.clock_runs:
            raise InputError(f"{key}: who answers first is a question of time: expected a network or faults.late_s, found none")
    if s.buffer is not None:
        _refuse_beside_buffer(config, len(training))
        at_once = [client for client in training if dials.takes_no_time(client)]
        if early["sampling.buffer"] and len(at_once) >= s.buffer:
            raise InputError(
                f"sampling.buffer: {', '.join(at_once)} answer at once and fill every buffer of {s.buffer}, slower clients would never be waited "
                "for: expected rounds that take time (network.step_s, latency_s, up_mbit, down_mbit, faults.late_s)"
            )
    return dials


def samples(task: str, studies: Sequence[str], damage: Damage) -> int:
    """How many samples a client's studies give: each a study for disease, each a labelled frame for segmentation."""
    if task == "disease":
        return len(studies)
    return sum(2 - (damage.missing_frame(study, ("ED", "ES")) is not None) for study in studies)


# ---- what is drawn once a client


def damages(config: Config, clients: Sequence[str]) -> dict[str, Damage]:
    """{client: what is wrong with its training data}. Raises InputError for contours where there are none."""
    f, seed = config.faults, config.seed
    if config.task == "disease":
        for name in ("contour_mm", "missing_structure"):
            if getattr(f, name):
                raise InputError(f"faults.{name}: a class has no contours, expected task segmentation")
    sloppy = drawn.some_of(clients, f.missing_structure, seed, "missing structure")
    liars = attacks(config, clients)
    return {
        client: Damage(
            client=client,
            seed=seed,
            label_noise=f.label_noise,
            contour_mm=drawn.contour_offset_mm(seed, client, f.contour_mm),
            left_out=drawn.left_out_structure(seed, client, len(STRUCTURES)) if client in sloppy else 0,
            missing_frames=f.missing_frames,
            missing_slices=f.missing_slices,
            flipped=client in liars and f.attack == "label_flip",
        )
        for client in clients
    }


def attacks(config: Config, clients: Sequence[str]) -> dict[str, Attack]:
    """{byzantine client: how it lies}."""
    f: Faults = config.faults
    return {
        client: Attack(kind=f.attack, strength=f.strength, seed=config.seed)
        for client in drawn.some_of(clients, f.byzantine, config.seed, "byzantine")
    }


def ranks(config: Config, given: Mapping[str, int]) -> dict[str, int]:
    """The ranks that the clients' devices take."""
    return {c: drawn.halved_rank(rank, drawn.device(config.seed, c), config.faults.rank_halvings) for c, rank in given.items()}


def line_of(network: Network, seed: int, client: str) -> Line:
    """A client's line."""
    factor = drawn.spread_factor(drawn.line_quality(seed, client), network.spread)
    up, down = (_of(value, client, math.inf) * factor for value in (network.up_mbit, network.down_mbit))
    return Line(up_mbit=up, down_mbit=down, latency_s=network.latency_s)


def speed_of(network: Network, seed: int, client: str) -> float:
    """A client's device: how many times faster than one of speed 1."""
    return _of(network.speed, client, 1.0) * drawn.spread_factor(drawn.device(seed, client), network.speed_spread)


def local_steps(training: Training, samples: int) -> int:
    """The steps of a client's round, as `training.local` takes them."""
    if training.local_steps is not None:
        return training.local_steps
    return (training.local_epochs or 1) * math.ceil(samples / min(training.batch_size, samples)) if samples else 0


def _rates(config: Config) -> drawn.Rates:
    f, n = config.faults, config.network
    return drawn.Rates(
        dropout=f.dropout,
        late_s=f.late_s,
        slow=f.slow,
        slow_factor=f.slow_factor,
        outage=n.outage,
        outage_s=n.outage_s if n.outage else 0.0,
    )


def _of(value: float | Mapping[str, float], client: str, neutral: float) -> float:
    return value.get(client, neutral) if isinstance(value, Mapping) else value


# ---- what does not fit together


def _refuse_unknown(network: Network, clients: Sequence[str]) -> None:
    for name in ("up_mbit", "down_mbit", "speed"):
        value = getattr(network, name)
        unknown = sorted(set(value) - set(clients)) if isinstance(value, dict) else []
        if unknown:
            raise InputError(f"network.{name}: no client {unknown[0]!r}, expected some of {', '.join(sorted(clients))}")


def _refuse_beside_buffer(config: Config, clients: int) -> None:
    s = config.sampling
    beside = {
        "sampling.kind": (s.kind, "all"),
        "sampling.wait_for": (s.wait_for, 1.0),
        "sampling.deadline_s": (s.deadline_s, math.inf),
        "privacy.clip": (config.privacy.clip, None),
    }
    for key, (found, expected) in beside.items():
        if found != expected:
            raise InputError(f"{key}: in asynchronous rounds (sampling.buffer) expected {expected}, found {found}")
    if s.buffer is not None and s.buffer > clients:
        raise InputError(f"sampling.buffer: expected at most the {clients} clients that train, found {s.buffer}")


def require_asynchronous(strategy: Strategy, server: State, clients: Sequence[Client], names: Sequence[str], rounds: int) -> None:
    """Raise InputError, with the reason, if the strategy cannot take an update that started from an older version of the model: what a
    client moved is then added to what it would be sent now, name by name.

    names: of a client's whole tree. The strategy is shown one round in which nobody moves, and asked what it wants in each of `rounds`.
    """

    def refuse(why: str) -> InputError:
        return InputError(f"sampling.buffer: {strategy.name} cannot work asynchronously: {why}")

    if strategy.pools_data:
        raise refuse("it has one client")
    if strategy.review is not None:
        raise refuse("its second exchange is about the updates of one round")
    if not strategy.steady:
        raise refuse("its pairs start anew each round, and a movement from the last start means nothing after the next one")
    before = {client.id: strategy.broadcast(server, client) for client in clients}
    for broadcast in before.values():
        if broadcast.task.prunes:
            raise refuse("it prunes ranks by what clients send, which is moved on to the server's newer model before it comes to that")
        if broadcast.extra:
            raise refuse(f"what it sends besides ({', '.join(sorted(broadcast.extra))}) is about one round")
        unknown = sorted(set(trees.match(names, broadcast.task.uploads)) - set(broadcast.adapter))
        if unknown:
            raise refuse(f"clients send {unknown[0]}, which they are not sent: there is nothing to measure a movement from")
    still = [
        ClientUpdate(client_id=c.id, num_examples=max(1, c.num_examples), adapter=_uploads(before[c.id], names), scaling=c.scaling)
        for c in clients
    ]
    later = strategy.aggregate(server, still)
    for client in clients:
        one, two = before[client.id], strategy.broadcast(later, client)
        if two.base_version != one.base_version:
            raise refuse("it folds into the base, which a client that is still training would not have")
        if set(two.adapter) != set(one.adapter) or two.task.uploads != one.task.uploads:
            raise refuse("rounds send different names")
    first = clients[0]
    for number in range(2, rounds):
        then = strategy.broadcast(replace(later, values={**later.values, "round": number}), first)
        if then.task.uploads != before[first.id].task.uploads:
            raise refuse(f"from round {number + 1} on it asks for other names")


def _uploads(broadcast: Any, names: Sequence[str]) -> dict[str, Any]:
    return {name: broadcast.adapter[name] for name in trees.match(names, broadcast.task.uploads)}
