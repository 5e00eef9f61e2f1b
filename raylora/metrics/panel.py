"""One configuration over several seeds: the same patients scored by each seed's models, and the mean of that with an interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from raylora.core.seeds import generator
from raylora.metrics.bootstrap import REPLICATES, degrees_of_freedom, draws, interval
from raylora.metrics.classification import Statistic, asked
from raylora.metrics.matrix import Sample


@dataclass(frozen=True)
class Panel:
    """S rows by n patients: each row one seed's models, every patient scored in every row."""

    seeds: tuple[int, ...]  # (S,) of each row; rows of one seed (several models scored on the same patients) count as one together
    patients: tuple[str, ...]  # sorted
    clients: tuple[str, ...]  # (n,) whose patient each is
    truth: np.ndarray  # (n,) 0 or 1; segmentation: 0
    values: np.ndarray  # (S, n)
    threshold: np.ndarray  # (S, n)
    statistic: Statistic

    def restrict(self, patients: Sequence[str]) -> Panel:
        """The same for some of the patients."""
        keep = [self.patients.index(p) for p in sorted(patients)]
        return replace(
            self,
            patients=tuple(sorted(patients)),
            clients=tuple(self.clients[i] for i in keep),
            truth=self.truth[keep],
            values=self.values[:, keep],
            threshold=self.threshold[:, keep],
        )

    def strata(self) -> list[tuple[str, float]]:
        """What patients are drawn within: the client, and for decisions the class."""
        return list(zip(self.clients, self.truth.tolist(), strict=True))

    @property
    def degrees(self) -> int:
        """Of freedom of the score, see `degrees_of_freedom`: of the patients behind it."""
        return degrees_of_freedom(self._behind())

    @property
    def valued(self) -> set[str]:
        """The clients that have a value: those behind the score."""
        return {client for client, score in self.client_scores.items() if score is not None}

    @property
    def counted(self) -> int:
        """How many patients are behind the score."""
        return len(self._behind())

    def _behind(self) -> list[tuple[str, float]]:
        """The strata of the patients that the statistic asks for, of clients that have a value."""
        valued = self.valued
        return [one for one, behind in zip(self.strata(), asked(self.statistic, self.truth), strict=True) if behind and one[0] in valued]

    def per_seed(self, weights: np.ndarray) -> np.ndarray:
        """The mean over clients for case weights (..., n): (S, ...). Clients without a value (a missing class) are left out."""
        clients = np.array(self.clients)
        members = [np.flatnonzero(clients == client) for client in sorted(set(self.clients))]
        seeds = []
        for values, threshold in zip(self.values, self.threshold, strict=True):
            one = [self.statistic(self.truth[m], values[m], threshold[m], weights[..., m]) for m in members]
            stacked = np.stack(one)  # (C, ...)
            exists = np.isfinite(stacked)
            count = exists.sum(0)
            total = np.where(exists, stacked, 0.0).sum(0)
            seeds.append(np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0))
        return np.stack(seeds)

    @property
    def seed_scores(self) -> dict[int, float | None]:
        """Each seed's mean over clients."""
        if not self.patients:
            return dict.fromkeys(sorted(set(self.seeds)))
        scores = self.per_seed(np.ones(len(self.patients)))
        means = {seed: float(np.mean(scores[np.array(self.seeds) == seed])) for seed in sorted(set(self.seeds))}
        return {seed: mean if np.isfinite(mean) else None for seed, mean in means.items()}

    @property
    def point(self) -> float | None:
        """The mean over seeds of the mean over clients."""
        scores = list(self.seed_scores.values())
        return None if not scores or None in scores else float(np.mean(scores))

    @property
    def client_scores(self) -> dict[str, float | None]:
        """The mean over seeds for each client."""
        own = {client: [p for p, c in zip(self.patients, self.clients, strict=True) if c == client] for client in sorted(set(self.clients))}
        return {client: self.restrict(patients).point for client, patients in own.items()}

    @property
    def decisions(self) -> np.ndarray:
        """Whether each row's model was right about each patient at its own threshold: (S, n) bool."""
        return (self.values >= self.threshold) == (self.truth == 1)

    def replicates(self, patient_weights: np.ndarray, seed_weights: np.ndarray) -> np.ndarray:
        """The score under R draws of patients (R, n) and of seeds (R, S): (R,)."""
        return (self.per_seed(patient_weights).T * seed_weights).sum(1) / seed_weights.sum(1)


def panel(rows: Sequence[tuple[int, Mapping[str, Sample]]]) -> Panel:
    """(seed, samples by client) as one panel of the patients that are in every row; a patient's client is that of the first row."""
    cells: list[dict[str, tuple[str, float, float, float]]] = [
        {
            patient: (client, float(truth), float(value), float(threshold))
            for client, s in samples.items()
            for patient, truth, value, threshold in zip(s.patients, s.truth, s.values, s.threshold, strict=True)
        }
        for _, samples in rows
    ]
    patients = tuple(sorted(set.intersection(*(set(row) for row in cells))))
    shape = len(rows), len(patients)
    return Panel(
        seeds=tuple(seed for seed, _ in rows),
        patients=patients,
        clients=tuple(cells[0][p][0] for p in patients),
        truth=np.array([cells[0][p][1] for p in patients]),
        values=np.array([[row[p][2] for p in patients] for row in cells]).reshape(shape),
        threshold=np.array([[row[p][3] for p in patients] for row in cells]).reshape(shape),
        statistic=next(iter(rows[0][1].values())).statistic,
    )


def seed_draws(seeds: Sequence[int], replicates: int, root_seed: int) -> np.ndarray:
    """How often each row's seed is drawn in each replicate: (R, S). Equal sets of seeds get equal draws: pairs of seeds stay pairs."""
    unique = sorted(set(seeds))
    drawn = draws(["seed"] * len(unique), replicates, generator(root_seed, f"bootstrap seeds {unique}"))
    return drawn[:, [unique.index(seed) for seed in seeds]]


def bootstrap(one: Panel, root_seed: int = 0, replicates: int = REPLICATES) -> np.ndarray:
    """Replicates (R,) of a panel's mean: patients drawn within clients (and classes), then seeds."""
    patient_weights = draws(one.strata(), replicates, generator(root_seed, "bootstrap patients"))
    return one.replicates(patient_weights, seed_draws(one.seeds, replicates, root_seed))


def panel_interval(one: Panel, root_seed: int = 0, replicates: int = REPLICATES) -> tuple[float, float] | None:
    """The 95 % interval of a panel's mean; None where it cannot be had (a client with one patient, or with one of a class)."""
    if one.point is None:
        return None
    return interval(bootstrap(one, root_seed, replicates), one.degrees)
