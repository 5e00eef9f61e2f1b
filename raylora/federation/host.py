"""What one process holds of the federation: one model, and the data and private state of its clients."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from raylora.core.types import Broadcast, ClientState, Phase
from raylora.federation import memory
from raylora.federation.answers import EvalRow, Outcome, Scored
from raylora.federation.client import Site, work
from raylora.federation.protocol import Protocol, initial_tree
from raylora.federation.stacking import Probe
from raylora.models.stacked import StackedModel
from raylora.training.features import Prefix
from raylora.training.inference import evaluate, segment
from raylora.training.local import Job, train
from raylora.training.losses import LOSSES

PROBE_STEPS, PROBE_LR = 2, 1e-12


class Host:
    """Clients that share a process. A round is idempotent: asked again for the same round, a client starts from the same state."""

    def __init__(self, model: StackedModel, protocol: Protocol, sites: Mapping[str, Site]) -> None:
        self.model, self.protocol, self.sites = model, protocol, sites
        self.states: dict[str, ClientState] = {}
        self.after: dict[str, ClientState] = {}
        self.original = {name: weight.detach() for name, weight in model.weights.items()}
        self.folded: frozenset[str] = frozenset()

    def train(self, clients: Sequence[str], broadcasts: Sequence[Broadcast]) -> list[Outcome]:
        """One round of clients that share a pass."""
        round = broadcasts[0].task.round
        for client in clients:
            state = self.after.get(client)
            if state is not None and state.round < round:  # that round is over: what it left is where this one starts
                self.states[client] = state
        started = time.perf_counter()
        results = work(self.model, self.protocol, [self.sites[c] for c in clients], [self.states.get(c) for c in clients], broadcasts)
        seconds = (time.perf_counter() - started) / len(clients)
        for client, broadcast, (_, state) in zip(clients, broadcasts, results, strict=True):
            if broadcast.task.phases:
                self.after[client] = state
        return [Outcome(update=update, state=state, seconds=seconds) for update, state in results]

    def restore(self, states: Mapping[str, ClientState]) -> None:
        """Take the states that a driver kept: after a restart, to resume, or of clients that were elsewhere."""
        for client, state in states.items():
            self.states[client] = state
            self.after.pop(client, None)

    def probe(self, stack: int) -> Probe:
        """What a training step costs with the first `stack` clients in one pass. Nothing of it is kept."""
        training = (site for site in map(self.sites.__getitem__, sorted(self.sites)) if len(site.shard.training))
        chosen = list(itertools.islice(training, stack))
        trees = [initial_tree(self.model.outline, self.protocol, site.id, site.rank) for site in chosen]
        jobs = [
            Job(client=site.id, samples=site.shard.training, tree=tree, alpha=self.protocol.alpha)
            for site, tree in zip(chosen, trees, strict=True)
        ]

        def steps(count: int) -> None:
            settings = replace(self.protocol.settings, local_epochs=None, local_steps=count, lr=PROBE_LR)
            train(self.model, jobs, (Phase(trains=("*",)),), settings, LOSSES[self.protocol.task], seed=self.protocol.seed, round=0)

        before = memory.held(self.device)
        try:
            with memory.Peak(self.device) as peak:
                steps(PROBE_STEPS)  # what is slow only once: pages, kernels, features of the frozen prefix
                started = time.perf_counter()
                steps(PROBE_STEPS)  # of the same batches
                seconds = time.perf_counter() - started
        except torch.OutOfMemoryError:
            return Probe(clients=stack, seconds=math.inf, bytes=math.inf, before=before)
        return Probe(clients=stack, seconds=seconds / PROBE_STEPS / len(chosen), bytes=peak.bytes, before=before)

    def memory_bytes(self, actors: int, share: float = 1.0) -> float:
        """How large this process may become beside `actors` - 1 others like it; of a GPU, its share."""
        return memory.limit(self.device, actors, share)

    @property
    def device(self) -> str:
        return self.model.device.type

    def set_base(self, weights: Mapping[str, np.ndarray]) -> None:
        """The base from now on: the original, with these weights in place of its own."""
        back = {name: self.original[name] for name in self.folded if name not in weights}
        self.model.set_base({**back, **weights})
        self.folded = frozenset(weights)
        prefix = self.model.prefix
        if prefix is not None and prefix.holds([*back, *weights]):  # folds go into adapted layers, behind it: no method does this
            self.model.prefix = Prefix(self.model, prefix.spec)

    def evaluate(
        self, requests: Sequence[Scored], split: str, *, full: bool, stack: int = 1, clients: Collection[str] | None = None
    ) -> list[EvalRow]:
        """Rows of every requested model on the requested patients, or those of some clients alone.

        Models that are asked for the same patients share passes over them, `stack` at a time in the order of the requests: which ones
        follows from the requests alone, not from who scores them.
        """
        rows: list[EvalRow] = []
        for together in _sharing(requests, stack):
            here = [client for client in together[0].data_of if clients is None or client in clients]
            if not here:
                continue
            self.model.load([r.tree for r in together], [self.protocol.alpha] * len(together))
            self.model.gate(together[0].gates)
            for client in here:
                cases = getattr(self.sites[client].shard, split)
                found = evaluate(self.model, cases, self.protocol.task, self.protocol.depth, self.protocol.eval_batch, full=full)
                rows += [(request.model_of, client, *row) for request, own in zip(together, found, strict=True) for row in own]
        return rows

    def predictions(self, request: Scored, client: str, patient: str) -> dict[str, np.ndarray]:
        """image, prediction and truth of a test patient on the prepared grid, for pictures: names "<frame>/<image|pred|truth>"."""
        case = next(case for case in self.sites[client].shard.test if case.patient == patient)
        self.model.load([request.tree], [self.protocol.alpha])
        self.model.gate(request.gates)
        arrays: dict[str, np.ndarray] = {}
        for frame, pred in segment(self.model, case, self.protocol.depth).items():
            arrays |= {f"{frame}/image": case.images[frame], f"{frame}/pred": pred, f"{frame}/truth": case.labels[frame]}
        return arrays


def _sharing(requests: Sequence[Scored], stack: int) -> Iterator[Sequence[Scored]]:
    """The requests in groups of at most `stack` that want the same patients under the same gates."""
    alike: dict[tuple[tuple[str, ...], tuple[tuple[str, float], ...]], list[Scored]] = {}
    for request in requests:
        alike.setdefault((request.data_of, tuple(sorted(request.gates.items()))), []).append(request)
    for group in alike.values():
        for start in range(0, len(group), stack):
            yield group[start : start + stack]
