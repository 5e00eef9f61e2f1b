"""The one local training loop, K clients wide: K = 1 is the ordinary loop.

Per-client factors, heads, optimiser moments, learning rates, gradient clips, random streams and losses stay exactly separate; what the
clients share is the pass through the frozen weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from raylora.core.errors import RunError
from raylora.core.seeds import generator, seed_of
from raylora.core.tree import match
from raylora.core.types import Phase, Tree
from raylora.models.stacked import StackedModel, kept_in
from raylora.training.features import placed
from raylora.training.optim import OPTIMISERS, clip_per_client
from raylora.training.samples import Batch, Samples
from raylora.training.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Job:
    """One client's work in one round."""

    client: str
    samples: Samples
    tree: Tree  # every tensor of the client's model that is not the frozen base
    alpha: float
    extra: Mapping[str, Tree] = field(default_factory=dict)  # "c" and "c_k" for the control term, ...


@dataclass(frozen=True, kw_only=True)
class Result:
    tree: dict[str, np.ndarray]
    metrics: dict[str, float]
    steps: int


Loss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def train(
    model: StackedModel, jobs: Sequence[Job], phases: Sequence[Phase], settings: Settings, loss: Loss, *, seed: int, round: int
) -> list[Result]:
    """Train the jobs' clients in one pass, phase after phase. Raises RunError at the first non-finite loss, naming round, client and step."""
    plans = [_batches(job, settings, seed, round) for job in jobs]
    trees: list[Mapping[str, np.ndarray]] = [dict(job.tree) for job in jobs]
    losses: list[list[float]] = [[] for _ in jobs]
    done = [0] * len(jobs)
    every = [phase_ends(phases, len(plan)) for plan in plans]
    for number, phase in enumerate(phases):
        ends = [of[number] for of in every]
        steps = [plan[a:b] for plan, a, b in zip(plans, done, ends, strict=True)]
        trees = _phase(model, jobs, trees, phase, steps, losses, settings, loss, seed=seed, round=round, number=number)
        done = ends
    return [
        Result(tree=dict(tree), metrics={"loss": float(np.mean(values))} if values else {}, steps=len(plan))
        for tree, values, plan in zip(trees, losses, plans, strict=True)
    ]


def phase_ends(phases: Sequence[Phase], steps: int) -> list[int]:
    """The step with which each phase of a round of `steps` local steps ends."""
    passed = [min(share, 1.0) for share in np.cumsum([phase.share for phase in phases])]
    return [steps if share >= 1 - 1e-9 else round_half_up(steps * share) for share in passed]


def round_half_up(value: float) -> int:
    return math.floor(value + 0.5)


def _phase(
    model: StackedModel,
    jobs: Sequence[Job],
    trees: Sequence[Mapping[str, np.ndarray]],
    phase: Phase,
    plans: Sequence[Sequence[np.ndarray]],
    losses: list[list[float]],
    settings: Settings,
    loss: Loss,
    *,
    seed: int,
    round: int,
    number: int,
) -> list[Mapping[str, np.ndarray]]:
    """One stretch of local training with one set of trained names; returns the clients' trees afterwards."""
    trained = set(match(trees[0], phase.trains))
    model.load(trees, [job.alpha for job in jobs])
    streams = [torch.Generator().manual_seed(seed_of(seed, f"dropout/{number}", round, job.client) % 2**63) for job in jobs]
    parameters = model.begin(phase, trained, streams)
    kept, device = kept_in(model.dtype), model.device
    terms = _Terms(phase, jobs, parameters, model, kept)
    optimiser = OPTIMISERS[settings.optimiser](weight_decay=settings.weight_decay)
    active = list(range(len(jobs)))
    result: list[Mapping[str, np.ndarray]] = list(trees)
    draws = [generator(seed, f"augment/{number}", round, job.client) for job in jobs]
    under_way: tuple[int, list[int], torch.Tensor] | None = None  # a step, its clients, their losses

    def note(step: int, clients: Sequence[int], values: torch.Tensor) -> None:
        for k, value in zip(clients, values.tolist(), strict=True):
            if not math.isfinite(value):
                raise RunError(
                    f"round {round + 1}, client {jobs[k].client}, step {step + 1}: the loss is {value}; try a smaller training.lr"
                )
            losses[k].append(value)

    for step in range(max(map(len, plans), default=0)):
        staying = [k for k in active if len(plans[k]) > step]
        if staying != active:  # clients with fewer steps leave the stack
            leaving = [position for position, k in enumerate(active) if k not in staying]
            for position, tree in zip(leaving, model.read(leaving), strict=True):
                result[active[position]] = tree
            positions = [active.index(k) for k in staying]
            model.keep(positions)
            index = torch.tensor(positions)
            optimiser.keep(index)
            terms.keep(index)
            parameters = model.begin(phase, trained, [streams[k] for k in staying])
            active = staying
        inputs, targets, weights = _stack([jobs[k].samples.batch(plans[k][step], draws[k]) for k in active])
        inputs = tuple(placed(tensor, device, model.dtype) for tensor in inputs)
        targets, weights = placed(targets, device), placed(weights, device, kept)
        if under_way is not None:  # until here a GPU was still at work on the step before
            note(*under_way)
        model.present([len(plans[k][step]) for k in active])
        per_client = loss(model(*inputs).to(kept), targets, weights)
        under_way = step, active, per_client.detach()
        if not parameters:
            continue
        penalty = terms.penalty(parameters)
        (per_client.sum() + penalty).backward()
        terms.add_to_gradients(parameters)
        if settings.clip is not None:
            clip_per_client(parameters, settings.clip)
        optimiser.step(parameters, torch.full((len(active),), settings.rate(round), dtype=kept, device=device))
        for value in parameters.values():
            value.grad = None
    if under_way is not None:
        note(*under_way)
    for k, tree in zip(active, model.read(range(len(active))), strict=True):
        result[k] = tree
    model.end()
    return result


class _Terms:
    """The closed set of terms that a method may add to the local step.

    prox: (mu/2) ||w - w_received||^2 on the trained factors (FedProx, 1812.06127, eq. 2).
    control: the gradient plus c - c_k (SCAFFOLD, 1910.06378, eq. 3).
    het_prune: lam ||B[:, g:]|| ||A[g:, :]|| (HetLoRA, 2401.06432, eq. 4) with g = max(het_least, ceil(het_gamma r)).
    orthogonal: lam ||A_global A_local^T||^2, which keeps shared and private subspaces apart.
    """

    KNOWN = ("prox", "control", "het_prune", "het_gamma", "het_least", "orthogonal")

    def __init__(
        self, phase: Phase, jobs: Sequence[Job], parameters: Mapping[str, torch.Tensor], model: StackedModel, dtype: torch.dtype
    ) -> None:
        unknown = set(phase.terms) - set(self.KNOWN)
        if unknown:
            raise ValueError(f"unknown local terms {sorted(unknown)} (known: {self.KNOWN})")
        self.terms = phase.terms
        self.start = {name: value.detach().clone() for name, value in parameters.items()} if "prox" in self.terms else {}
        self.shift: dict[str, torch.Tensor] = {}
        self.model = model
        if "control" in self.terms:
            for name, value in parameters.items():
                rows = [_difference(job.extra.get("c", {}).get(name), job.extra.get("c_k", {}).get(name), value.shape[1:]) for job in jobs]
                self.shift[name] = torch.from_numpy(np.stack(rows)).to(value.device, dtype) * self.terms["control"]

    def keep(self, index: torch.Tensor) -> None:
        self.start = {name: value[index] for name, value in self.start.items()}
        self.shift = {name: value[index] for name, value in self.shift.items()}

    def add_to_gradients(self, parameters: Mapping[str, torch.Tensor]) -> None:
        if not (self.start or self.shift):
            return
        with torch.no_grad():
            for name, value in parameters.items():
                if value.grad is None:
                    continue
                if self.start:
                    value.grad.add_(value.detach() - self.start[name], alpha=self.terms["prox"])
                if self.shift:
                    value.grad.add_(self.shift[name])

    def penalty(self, parameters: Mapping[str, torch.Tensor]) -> Any:
        total: Any = 0.0
        if self.terms.get("het_prune"):
            for a, b in _pairs(parameters):
                for k, ranks in enumerate(self.model.ranks):
                    kept = max(int(self.terms.get("het_least", 1)), math.ceil(self.terms.get("het_gamma", 0.99) * ranks[""] - 1e-9))
                    if kept < ranks[""]:
                        total = total + self.terms["het_prune"] * parameters[b][k][:, kept:].norm() * parameters[a][k][kept:].norm()
        if self.terms.get("orthogonal"):
            every = self.model.parameters
            for name in parameters:
                if name.startswith("local.") and name.endswith(".lora_A"):
                    product = torch.bmm(every[name.removeprefix("local.")], parameters[name].transpose(1, 2))
                    total = total + self.terms["orthogonal"] * product.square().sum()
        return total


def _pairs(parameters: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, str]]:
    for name in parameters:
        other = name.removesuffix("lora_A") + "lora_B"
        if name.endswith(".lora_A") and other in parameters:
            yield name, other


def _difference(a: np.ndarray | None, b: np.ndarray | None, shape: torch.Size) -> np.ndarray:
    zero = np.zeros(tuple(shape), np.float32)
    return (zero if a is None else a) - (zero if b is None else b)


def _batches(job: Job, settings: Settings, seed: int, round: int) -> list[np.ndarray]:
    """The samples of every local step, from (seed, round, client) alone.

    With epochs, each one is a fresh permutation cut into batches, the last of which may be smaller. With steps, permutations follow each
    other and every batch is full (or holds all samples where there are fewer).
    """
    rng = generator(seed, "batches", round, job.client)
    count, size = len(job.samples), min(settings.batch_size, len(job.samples))
    if settings.local_steps is None:
        return [
            order[i : i + size]
            for order in (rng.permutation(count) for _ in range(settings.local_epochs or 1))
            for i in range(0, count, size)
        ]
    needed = settings.local_steps * size
    stream = np.concatenate([rng.permutation(count) for _ in range(-(-needed // count))])
    return [stream[i : i + size] for i in range(0, needed, size)]


def _stack(batches: Sequence[Batch]) -> tuple[tuple[torch.Tensor, ...], torch.Tensor, torch.Tensor]:
    """K clients' (what enters the model, targets, weights) one after the other; shorter batches are filled with zeros of weight zero."""
    size = max(len(weights) for _, _, weights in batches)

    def joined(parts: Sequence[np.ndarray | torch.Tensor]) -> torch.Tensor:
        filled = []
        for part in map(torch.as_tensor, parts):
            missing = size - len(part)
            filled.append(torch.cat([part, part.new_zeros((missing, *part.shape[1:]))]) if missing else part)
        return filled[0] if len(filled) == 1 else torch.cat(filled)

    inputs, targets, weights = zip(*batches, strict=True)
    entering = zip(*(images if isinstance(images, tuple) else (images,) for images in inputs), strict=True)
    return tuple(map(joined, entering)), joined(targets), joined(weights).reshape(len(batches), size)
