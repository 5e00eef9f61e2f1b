"""What each configuration reached and what it cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from raylora.metrics.bootstrap import REPLICATES, interval
from raylora.metrics.panel import Panel, bootstrap, panel_interval
from raylora.metrics.rows import FROZEN, GLOBAL
from raylora.report.groups import Group
from raylora.report.table import Estimate
from raylora.report.tables import reported_metrics

FROZEN_LABEL = "frozen model"


@dataclass(frozen=True)
class Score:
    """One configuration, means over its seeds; a value is None where the files do not hold it."""

    label: str
    strategy: str
    settings: Mapping[str, Any]
    seeds: tuple[int, ...]
    validation: Estimate
    in_client: Estimate
    cross_client: Estimate  # each client's full model on the other clients' patients
    shared: Estimate  # the global part alone, on all clients' patients
    held_out: Estimate  # the global part alone, on clients that never trained
    bytes_up: float | None = None
    bytes_down: float | None = None
    seconds: float | None = None
    exploratory: Mapping[str, Estimate] = field(default_factory=dict)
    per_client: Mapping[str, float | None] = field(default_factory=dict)
    per_seed: Mapping[int, float | None] = field(default_factory=dict)
    replicates: np.ndarray = field(default_factory=lambda: np.empty(0), repr=False)  # (R,) of in_client, empty where there is no score
    validation_replicates: np.ndarray = field(default_factory=lambda: np.empty(0), repr=False)  # (R,) of validation
    degrees: int = 0  # of freedom of in_client; 0: no interval
    validation_degrees: int = 0

    @property
    def bytes_total(self) -> float | None:
        return None if self.bytes_up is None or self.bytes_down is None else self.bytes_up + self.bytes_down


def score_of(group: Group, metric: str, root_seed: int = 0, replicates: int = REPLICATES) -> Score:
    """Everything the tables and pictures say of one group, for the primary metric of its task."""
    own, validation = group.in_client(metric), group.in_client(metric, "validation")
    clients = group.runs[0].clients
    unseen = sorted(group.runs[0].test.sites - set(clients))
    others = [name for name in reported_metrics(group.runs[0].task) if name != metric]

    def said(one: Panel | None) -> Estimate:
        return _estimate(one, root_seed, replicates)

    return Score(
        label=group.label,
        strategy=group.strategy,
        settings=group.settings,
        seeds=group.seeds,
        validation=said(validation),
        in_client=said(own),
        cross_client=said(group.cross_client(metric)),
        shared=said(group.of_model(metric, GLOBAL, clients)),
        held_out=said(group.of_model(metric, GLOBAL, unseen)),
        bytes_up=group.mean("bytes_up"),
        bytes_down=group.mean("bytes_down"),
        seconds=group.mean("wall_seconds"),
        exploratory={name: said(group.in_client(name)) for name in others},
        per_client=own.client_scores if own.patients else {},
        per_seed=own.seed_scores,
        replicates=_replicates(own, root_seed, replicates),
        validation_replicates=_replicates(validation, root_seed, replicates),
        degrees=own.degrees if own.patients else 0,
        validation_degrees=validation.degrees if validation.patients else 0,
    )


def frozen_score(group: Group, metric: str, root_seed: int = 0, replicates: int = REPLICATES) -> Score:
    """The pre-trained model before any training, from a run that scored it."""
    run = group.runs[0]
    once = Group(label=FROZEN_LABEL, settings={}, runs=(run,))
    own = once.of_model(metric, FROZEN, run.clients)
    unseen = once.of_model(metric, FROZEN, sorted(run.test.sites - set(run.clients)))
    others = [name for name in reported_metrics(run.task) if name != metric]
    nothing = Estimate(None)
    return Score(
        label=FROZEN_LABEL,
        strategy=FROZEN,
        settings={},
        seeds=(),
        validation=nothing,
        in_client=_estimate(own, root_seed, replicates),
        cross_client=nothing,
        shared=nothing,
        held_out=_estimate(unseen, root_seed, replicates),
        exploratory={name: _estimate(once.of_model(name, FROZEN, run.clients), root_seed, replicates) for name in others},
        per_client=own.client_scores if own is not None else {},
    )


def mean_estimate(scores: Sequence[Score], split: str = "test") -> Estimate:
    """The mean score (in-client on test patients, or on validation patients) of several configurations on the same patients, with the
    interval of that mean."""
    on_test = split == "test"
    estimates = [s.in_client if on_test else s.validation for s in scores]
    values = [e.value for e in estimates if e.value is not None]
    drawn = [r for s in scores if len(r := s.replicates if on_test else s.validation_replicates)]
    if not values:
        return Estimate(None)
    degrees = min((s.degrees if on_test else s.validation_degrees) for s, e in zip(scores, estimates, strict=True) if e.value is not None)
    low, high = interval(np.mean(drawn, axis=0), degrees) or (None, None)
    return Estimate(float(np.mean(values)), low, high, estimates[0].n)


def _replicates(one: Panel, root_seed: int, replicates: int) -> np.ndarray:
    return bootstrap(one, root_seed, replicates) if one.point is not None else np.empty(0)


def _estimate(one: Panel | None, root_seed: int, replicates: int) -> Estimate:
    if one is None or not one.patients or one.point is None:
        return Estimate(None)
    low, high = panel_interval(one, root_seed, replicates) or (None, None)
    return Estimate(one.point, low, high, one.counted)
