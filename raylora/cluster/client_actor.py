"""Clients in Ray actors: a shell around `federation.host`, and the executor that calls it."""

from __future__ import annotations

import contextlib
import gc
import itertools
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
from ray.exceptions import GetTimeoutError, NodeDiedError, ObjectLostError, OutOfMemoryError, RayActorError, RayTaskError

from raylora.cluster.resources import Request, calls, fitting
from raylora.cluster.session import available
from raylora.cluster.wire import Packed, pack, repeated, unpack
from raylora.core.errors import InputError, MachineError, RunError, named
from raylora.core.loading import uncollected
from raylora.core.types import ClientState
from raylora.data import obtain, travel
from raylora.data.features import FOLDER
from raylora.data.shards import PreparedSet

if TYPE_CHECKING:
    from raylora.federation.answers import EvalRow, Outcome, Scored
    from raylora.federation.rounds import Rows, Stack
    from raylora.federation.spec import HostSpec
    from raylora.federation.stacking import Probe

RESTARTS = 3  # of one actor without an update in between, before its loss ends the run
CALL_S, CALL_BYTES, CALL_PASSES = 0.5, 8e6, 16  # of passes that one call asks for: their seconds, what they are sent, and how many
ROOM_S = 2.0  # between looks at whether the cluster still has room for an actor that does not come up
LOST = (
    RayActorError,
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
)  # a process or a machine is gone; an exception in it is no such thing


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where an actor computes."""

    node: str = ""
    pid: int = 0
    device: str = ""


class ClientActor:
    """Clients in a process of their own: any of them, though each has its home. It calls the host."""

    def __init__(self) -> None:
        with uncollected():
            from raylora.federation import build  # noqa: F401  (torch is loaded while whoever started this does something else)

        self.host: Any = None

    def open(
        self,
        spec: HostSpec,
        weights: Mapping[str, np.ndarray],
        gpus: float,
        parcels: Sequence[travel.Parcel] | None = None,
    ) -> Place | None:
        """Build the host (here, so that what goes wrong is an error and not a lost actor); says where it is.

        Where this machine does not have the prepared sets the answer is None, and `parcels` are sent.
        """
        from raylora.federation import memory
        from raylora.federation.build import build_host, device_here

        if self.host is not None:  # of an experiment before this one: not to be kept beside it
            self.host = None
            gc.collect()
        if parcels is not None:
            sets = [PreparedSet(travel.unpack(parcel, obtain.cache_folder(), ray.get)) for parcel in parcels]
            if spec.cache is not None:  # the command's folder need not be one that this machine has
                spec = replace(spec, cache=replace(spec.cache, folder=str(obtain.cache_folder() / FOLDER)))
        else:
            sets = [travel.here(Path(folder), sha256) for folder, sha256 in zip(spec.sets, spec.sets_sha256, strict=True)]
            if None in sets:
                return None
        memory.keep_to_share(device_here(spec.device), gpus)
        self.host, self.gpus = build_host(spec, weights, sets), gpus
        return Place(node=ray.get_runtime_context().get_node_id(), pid=os.getpid(), device=self.host.device)

    def train(self, message: Packed, known: Packed) -> Packed:
        """Outcomes of some passes; the message holds these, and the states of clients that this process does not have."""
        stacks, states = unpack(message, unpack(known))
        self.host.restore(states)
        return pack([outcome for stack in stacks for outcome in self._pass(stack)])

    def _pass(self, stack: Stack) -> list[Outcome]:
        try:
            return self.host.train([client for client, _ in stack], [broadcast for _, broadcast in stack])
        except Exception as error:
            raise _told(error, _who(stack)) from error

    def evaluate(self, requests: Packed, split: str, full: bool, stack: int, clients: Sequence[str]) -> list[EvalRow]:
        return self.host.evaluate(unpack(requests), split, full=full, stack=stack, clients=frozenset(clients))

    def predictions(self, request: Scored, client: str, patient: str) -> dict[str, np.ndarray]:
        return self.host.predictions(request, client, patient)

    def set_base(self, weights: Mapping[str, np.ndarray]) -> None:
        self.host.set_base(weights)

    def probe(self, stack: int) -> Probe:
        return self.host.probe(stack)

    def memory_bytes(self, actors: int) -> float:
        return self.host.memory_bytes(actors, self.gpus)


def started(request: Request) -> list[Any]:
    """The actors of a request, none of them opened yet: their processes come up while the caller does something else."""
    return [_actor(request.cpus, request.gpus) for _ in request.groups]


def _actor(cpus: float, gpus: float) -> Any:
    return ray.remote(num_cpus=cpus, num_gpus=gpus)(ClientActor).remote()


@dataclass(frozen=True)
class Asked:
    """What an actor is working on, or will when it has done what it was asked before."""

    index: int
    actor: Any
    ask: Callable[[Any], Any]  # an actor -> the reference of its answer: how it is asked again in the place of one that was lost
    answer: Any


class RayExecutor:
    """An `Executor` over `ClientActor`s. A lost actor is started again and asked again: no number changes.

    Clients stay where they are: an actor keeps the states of those it trained last. Where a pass brings clients together that were apart,
    the states of those that come are sent with the call.

    A call costs Ray about 4 ms of CPU time, more than a small client's training may: passes that were short last time are asked for together.
    """

    call_s = CALL_S

    def __init__(
        self, spec: HostSpec, weights: Any, request: Request, timeout_s: float, ready: list[Any] | None = None, *, keep: bool = False
    ) -> None:
        """`weights`: the backbone's, as arrays, or as a reference to where Ray holds them already. `ready`: actors from `started`, or of an
        experiment before this one; those that are needed are taken from it. `keep`: at the end they come back to it, unless one of them
        owes an answer."""
        self.ready, self.keep = [] if ready is None else ready, keep
        self.owed: set[Any] = set()  # answers that nobody has had yet
        self.spec, self.request, self.timeout_s, self.stack = spec, request, timeout_s, 1
        self.shared_spec = ray.put(spec)
        self.weights = (
            weights if isinstance(weights, ray.ObjectRef) else ray.put(dict(weights))
        )  # once a node; actors on a CPU use the object store's own memory
        self.base = ray.put({})
        self.states: dict[str, ClientState] = {}
        self.seconds: dict[str, float] = {}  # client -> its share of the pass that it trained in last
        self.at: dict[str, int] = {}  # client -> the actor that has its latest state
        self.whole = [True] * len(request.groups)  # whether an actor's machine has everybody's studies
        self.home = {client: index for index, group in enumerate(request.groups) for client in group}
        self.restarts = [0] * len(request.groups)
        self.losses = [0] * len(request.groups)  # since the last answer
        self.cpus = [request.cpus] * len(request.groups)
        self.actors: list[Any] = []
        opened = []
        for index in range(len(request.groups)):
            actor, where = self._start(index)
            self.actors.append(actor)
            opened.append(where)
        self.places = [Place()] * len(opened)
        for index, where in enumerate(opened):
            try:
                self.places[index] = self._opened(index, where)
            except LOST as error:
                self._revive(index, error)

    def _start(self, index: int) -> tuple[Any, Any]:
        actor = self.ready.pop(0) if self.ready else _actor(self.cpus[index], self.request.gpus)
        return actor, actor.open.remote(self.shared_spec, self.weights, self.request.gpus)

    def _send(self, index: int) -> Any:
        """Open an actor on a machine without the data: its clients' studies go with it, and no others unless passes bring clients together,
        or it is in the place of one that may have been asked for others."""
        self.whole[index] = self.request.together or self.restarts[index] > 0
        spec = self.spec if self.whole[index] else self.spec.of(self.request.groups[index])
        ids = [i for site in spec.sites for part in (site.training, site.validation, site.rating, site.test) for i in part]
        parcels = [travel.pack(Path(folder), ids, ray.put) for folder in spec.sets]
        return self.actors[index].open.remote(spec, self.weights, self.request.gpus, parcels)

    def _opened(self, index: int, where: Any) -> Place:
        """Wait until an actor is there. A lost node takes its CPUs with it: then the actors that were on it share what is left."""
        who, waited = f"client {', '.join(self.request.groups[index])}", 0.0
        while True:
            try:
                place = ray.get(where, timeout=min(ROOM_S, self.timeout_s))
                if place is not None:
                    return place
                where = self._send(index)
            except GetTimeoutError:
                waited += ROOM_S
                if waited >= self.timeout_s:
                    raise MachineError(
                        f"{who}: no answer for {self.timeout_s:g} s (placement.timeout_s) from an actor that starts"
                    ) from None
                if self.restarts[index] and self.cpus[index] and not self._room():
                    if self.request.gpus:
                        raise MachineError(f"{who}: their actor was lost with its GPU, and the cluster has no other") from None
                    self.cpus[index] = 0.0
                    ray.kill(self.actors[index])
                    self.actors[index], where = self._start(index)
            except RayTaskError as error:
                raise _unwrapped(error, who) from error

    def _room(self) -> bool:
        """Whether the nodes that are left can hold all actors at once."""
        return fitting(available(), self.request.cpus, self.request.gpus) >= len([cpu for cpu in self.cpus if cpu])

    def _revive(self, index: int, error: Exception) -> None:
        """A new actor with the clients' states as they were before the round that was lost. Raises MachineError for the fourth in a row."""
        while True:
            self.restarts[index] += 1
            self.losses[index] += 1
            why = str(error).splitlines()[0]
            if self.losses[index] > RESTARTS:
                clients = ", ".join(self.request.groups[index])
                raise MachineError(f"clients {clients}: their actor was lost {self.losses[index]} times in a row ({why})")
            ray.kill(self.actors[index])
            self.actors[index], where = self._start(index)
            self.at = {client: place for client, place in self.at.items() if place != index}  # what it kept comes with the next call
            try:
                self.places[index] = self._opened(index, where)
                self.actors[index].set_base.remote(self.base)
                return
            except LOST as again:
                error = again

    def arrange(self, stack: int) -> None:
        self.stack = stack
        self.request = self.request.arranged(stack)
        self.home = {client: index for index, group in enumerate(self.request.groups) for client in group}

    def _ask(self, index: int, ask: Callable[[Any], Any]) -> Asked:
        asked = Asked(index, self.actors[index], ask, ask(self.actors[index]))
        self.owed.add(asked.answer)
        return asked

    def _again(self, asked: Asked, error: Exception) -> Asked:
        """The same, asked of the actor in the place of the one that was lost, which is started unless it has been."""
        self.owed.discard(asked.answer)
        if self.actors[asked.index] is asked.actor:
            self._revive(asked.index, error)
        return self._ask(asked.index, asked.ask)

    def _answer(self, asked: Asked, what: str) -> Any:
        while True:
            try:
                value = ray.get(asked.answer, timeout=self.timeout_s)
                self.owed.discard(asked.answer)
                return value
            except GetTimeoutError:
                raise MachineError(f"{what}: no answer for {self.timeout_s:g} s (placement.timeout_s)") from None
            except LOST as error:
                asked = self._again(asked, error)
            except RayTaskError as error:
                raise _unwrapped(error, what) from error

    def probe(self, stack: int) -> Probe:
        return self._answer(self._ask(0, lambda actor: actor.probe.remote(stack)), f"a pass of {stack} clients")

    def room(self) -> tuple[int, float]:
        return len(self.actors), self._answer(self._ask(0, lambda actor: actor.memory_bytes.remote(len(self.actors))), "memory")

    def train(self, stacks: Sequence[Stack]) -> Iterator[Outcome]:
        lean = [
            [(client, replace(broadcast, base_delta={})) for client, broadcast in stack] for stack in stacks
        ]  # the driver has folded already
        known = repeated([tree for stack in lean for _, broadcast in stack for tree in (broadcast.adapter, *broadcast.extra.values())])
        shared = ray.put(pack(known))
        places = self.request.assigned([[client for client, _ in stack] for stack in lean], self.whole)

        def ask(numbers: Sequence[int]) -> Asked:
            index, passes = places[numbers[0]], [lean[i] for i in numbers]

            def call(actor: Any) -> Any:
                coming = {c: self.states[c] for c in _clients(passes) if c in self.states and self.at.get(c) != index}
                return actor.train.remote(pack((passes, coming), known), shared)

            return self._ask(index, call)

        numbers = calls(places, [self._part(stack) for stack in lean])
        return self._outcomes([[lean[i] for i in call] for call in numbers], dict(enumerate(map(ask, numbers))))

    def _part(self, stack: Stack) -> float:
        """How much of a call a pass fills, by the seconds that its clients took last time; inf where that says nothing."""
        if not stack[0][1].task.phases:
            return math.inf
        seconds = sum(self.seconds.get(client, math.inf) for client, _ in stack)
        size = sum(array.nbytes for _, broadcast in stack for array in broadcast.adapter.values())
        return max(1 / CALL_PASSES, seconds / self.call_s, size / CALL_BYTES)

    def _outcomes(self, asked_for: Sequence[Sequence[Stack]], under_way: dict[int, Asked]) -> Iterator[Outcome]:
        """Of calls as they are done: the passes that each was asked for, and the numbers of those that are under way."""
        while under_way:
            numbers = {asked.answer: number for number, asked in under_way.items()}
            ready, _ = ray.wait(list(numbers), num_returns=1, timeout=self.timeout_s)
            if not ready:
                names = ", ".join(client for number in under_way for client in _clients(asked_for[number]))
                raise MachineError(f"no answer for {self.timeout_s:g} s (placement.timeout_s) from clients {names}")
            number = numbers[ready[0]]
            passes, asked = asked_for[number], under_way.pop(number)
            try:
                outcomes: list[Outcome] = unpack(ray.get(ready[0]), apart=len(_clients(passes)) > 1)
                self.owed.discard(ready[0])
            except LOST as error:
                under_way[number] = self._again(asked, error)
                continue
            except RayTaskError as error:
                raise _unwrapped(error, _who([pair for stack in passes for pair in stack])) from error
            stands = self.actors[asked.index] is asked.actor  # of answers that are there Ray names any first: its loss may be known already
            if stands:
                self.losses[asked.index] = 0
            if passes[0][0][1].task.phases:  # at once: if the actor is lost later in this round, these clients are not asked again
                self.states |= {outcome.update.client_id: outcome.state for outcome in outcomes}
                self.seconds |= {outcome.update.client_id: outcome.seconds for outcome in outcomes}
                for client in _clients(passes):
                    self.at.pop(client, None)
                    if stands:
                        self.at[client] = asked.index
            yield from outcomes

    def evaluate(self, requests: Sequence[Scored], split: str, *, full: bool) -> Rows:
        shared = ray.put(pack(list(requests)))

        def of(index: int) -> Asked:
            clients, stack = self.request.groups[index], self.stack
            return self._ask(index, lambda actor: actor.evaluate.remote(shared, split, full, stack, clients))

        under_way = [of(index) for index in range(len(self.actors))]

        def rows() -> list[EvalRow]:
            found = [self._answer(asked, f"evaluation of {', '.join(self.request.groups[asked.index])}") for asked in under_way]
            return sorted(itertools.chain.from_iterable(found), key=lambda row: row[:6])

        return rows

    def predictions(self, request: Scored, client: str, patient: str) -> dict[str, np.ndarray]:
        asked = self._ask(self.home[client], lambda actor: actor.predictions.remote(request, client, patient))
        return self._answer(asked, f"prediction of {patient}")

    def set_base(self, weights: Mapping[str, np.ndarray]) -> None:
        self.base = ray.put(dict(weights))
        for asked in [self._ask(index, lambda actor: actor.set_base.remote(self.base)) for index in range(len(self.actors))]:
            self._answer(asked, "base")

    def restore(self, states: Mapping[str, ClientState]) -> None:
        self.states |= states
        self.at = {client: place for client, place in self.at.items() if client not in states}

    def describe(self) -> list[dict[str, object]]:
        return [
            {"clients": list(group), **vars(place), "cpus": cpus, "gpus": self.request.gpus, "restarts": restarts}
            for group, place, cpus, restarts in zip(self.request.groups, self.places, self.cpus, self.restarts, strict=True)
        ]

    def close(self) -> None:
        if self.keep and not self.owed:
            self.ready += self.actors
            return
        for actor in self.actors:
            with contextlib.suppress(Exception):  # if Ray itself has gone, so have its actors; what ended the run is told
                ray.kill(actor)


def _clients(passes: Sequence[Stack]) -> list[str]:
    return [client for stack in passes for client, _ in stack]


def _who(stack: Stack) -> str:
    return f"round {stack[0][1].task.round + 1}, client {', '.join(client for client, _ in stack)}"


def _unwrapped(error: RayTaskError, who: str) -> Exception:
    """The remote error as our own; the remote traceback stays attached as its cause."""
    return _told(error.cause, who)


def _told(cause: BaseException, who: str) -> Exception:
    """An error as one of ours, if it is none yet: then it says who had it."""
    if isinstance(cause, InputError | RunError):
        return type(cause)(str(cause))
    return RunError(f"{who}: {named(cause)}")
