"""The blocks `final` and `cross_client` of `summary.json`, from the rows of `cases.parquet`. Numbers are finite or None."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from raylora.core.seeds import generator
from raylora.metrics.bootstrap import REPLICATES, degrees_of_freedom, draws, interval
from raylora.metrics.classification import STATISTICS, Statistic, asked
from raylora.metrics.rows import FROZEN, GLOBAL, CaseRow, CaseTable, case_table, patient_scores, segmentation_metrics

PRIMARY = {"segmentation": "dice", "disease": "balanced_accuracy"}  # task -> its one primary metric


@dataclass(frozen=True)
class Sample:
    """One model on the patients of one client (or of all): what a metric is computed from."""

    patients: tuple[str, ...]
    values: np.ndarray  # (n,) the metric of each patient; for disease the probability
    truth: np.ndarray  # (n,) 0 or 1; segmentation: 0
    threshold: np.ndarray  # (n,) that of the model which scored the patient
    statistic: Statistic

    def measure(self, weights: np.ndarray) -> np.ndarray:
        """The statistic for case weights (..., n): (...), NaN where it does not exist."""
        return self.statistic(self.truth, self.values, self.threshold, weights)

    @property
    def point(self) -> float | None:
        value = float(self.measure(np.ones(len(self.values)))) if len(self.values) else np.nan
        return value if np.isfinite(value) else None

    @property
    def behind(self) -> np.ndarray:
        """Whether each patient is one of those that the statistic is computed from: (n,) bool."""
        return asked(self.statistic, self.truth)

    def only(self, patients: Collection[str]) -> Sample:
        """The same for some of the patients."""
        kept = [i for i, patient in enumerate(self.patients) if patient in patients]
        arrays = {name: getattr(self, name)[kept] for name in ("values", "truth", "threshold")}
        return Sample(patients=tuple(self.patients[i] for i in kept), statistic=self.statistic, **arrays)


def weighted_mean(truth: np.ndarray, values: np.ndarray, threshold: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The mean of the patients' own values, in the shape of a `Statistic`."""
    return (weights @ values) / weights.sum(-1)


def metric_names(task: str) -> list[str]:
    """Every metric of `final` for a task."""
    if task == "segmentation":
        return list(segmentation_metrics())
    return [name + suffix for suffix in ("", "_tuned") for name in STATISTICS]  # auc_tuned is auc: an area needs no threshold


def sample(table: CaseTable, metric: str, model: str, data: str) -> Sample:
    """What `metric` of `model` on the patients of client `data` is computed from; empty if nothing was scored."""
    patients = table.patients.get((model, data), {})
    base = metric.removesuffix("_tuned")
    if base not in STATISTICS:
        scores = patient_scores(patients, metric)
        zeros = np.zeros(len(scores))
        return Sample(tuple(scores), np.array(list(scores.values()), dtype=np.float64), zeros, zeros, weighted_mean)
    threshold = table.thresholds.get(model) if metric.endswith("_tuned") else 0.5
    if threshold is None:  # its validation cases lacked a class: there is nothing that it was tuned to
        patients = {}
    scored = {p: raw for p, raw in sorted(patients.items()) if ("-", "diseased", "probability") in raw}
    probability = np.array([raw["-", "diseased", "probability"] for raw in scored.values()], dtype=np.float64)
    truth = np.array([raw["-", "diseased", "label"] for raw in scored.values()], dtype=np.float64)
    return Sample(tuple(scored), probability, truth, np.full(len(scored), threshold, dtype=np.float64), STATISTICS[base])


def pooled(samples: Sequence[Sample]) -> Sample:
    """All patients as one sample."""
    return Sample(
        tuple(p for s in samples for p in s.patients),
        *(np.concatenate([getattr(s, name) for s in samples]) for name in ("values", "truth", "threshold")),
        samples[0].statistic,
    )


def mean_of(values: Iterable[float | None]) -> float | None:
    """The mean of what exists; None if nothing does."""
    kept = [v for v in values if v is not None]
    return float(np.mean(kept)) if kept else None


def bootstrap_of_mean(samples: Mapping[str, Sample], seed: int, replicates: int) -> np.ndarray:
    """Replicates (replicates,) of the mean over clients, patients drawn within clients (for decisions within their classes, so that no draw
    loses one). Clients without the metric are left out; NaN if none has it."""
    per_client = [
        s.measure(draws(s.truth, replicates, generator(seed, "bootstrap", client=client)))
        for client, s in samples.items()
        if s.point is not None
    ]
    return np.mean(per_client, axis=0) if per_client else np.full(replicates, np.nan)


def entry(own: Mapping[str, Sample], frozen: Mapping[str, Sample], *, seed: int, replicates: int = REPLICATES) -> dict[str, object]:
    """One metric of `final` from each client's own model and from the frozen one: {mean, pooled, ci95, n, frozen, per_client}.

    `n` counts the patients behind `mean`, those of clients that have a value (a client may lack a class); `frozen` is over the same clients,
    or over all if none has a value; `ci95` is for `mean`, None where it cannot be had: one of those clients has one patient, or one of a class,
    behind its value.
    """
    per_client = {client: s.point for client, s in own.items()}
    counted = {client: s for client, s in own.items() if per_client[client] is not None}
    strata = [(client, truth) for client, s in counted.items() for truth in s.truth[s.behind].tolist()]
    bounds = interval(bootstrap_of_mean(own, seed, replicates), degrees_of_freedom(strata))
    return {
        "mean": mean_of(per_client.values()),
        "pooled": pooled(list(own.values())).point,
        "ci95": None if bounds is None else list(bounds),
        "n": len(strata),
        "frozen": mean_of(frozen[client].point for client in counted or frozen),
        "per_client": per_client,
    }


def final(
    rows: Iterable[CaseRow], *, task: str, clients: Sequence[str], seed: int = 0, replicates: int = REPLICATES
) -> dict[str, dict[str, object]]:
    """The block `final`: every metric on test patients, in-client (each client's own model on its own patients).

    Args:
        rows: of `cases.parquet`; any that are not test rows of a model's last round are ignored.
        task: "segmentation" or "disease".
        clients: the clients that trained, in the order of `summary.json`.
        seed: of the bootstrap.
    """
    table = case_table(rows)
    blocks = {}
    for metric in metric_names(task):
        own = {client: sample(table, metric, table.own_model(client), client) for client in clients}
        frozen = {client: sample(table, metric, FROZEN, client) for client in clients}
        blocks[metric] = entry(own, frozen, seed=seed, replicates=replicates)
    return blocks


Groups = dict[str, dict[str, dict[str, object]]]
"""{metric: {group: {mean, frozen, n}}}"""


def by_group(rows: Iterable[CaseRow], *, task: str, clients: Sequence[str], group_of: Mapping[str, str]) -> Groups:
    """Every metric on test patients, in-client, over all patients of a group (a data set, a scanner, ...)."""
    table = case_table(rows)
    found: Groups = {}
    for metric in metric_names(task):
        own = pooled([sample(table, metric, table.own_model(client), client) for client in clients])
        frozen = pooled([sample(table, metric, FROZEN, client) for client in clients])
        for group in sorted({group_of[patient] for patient in own.patients}):
            members = {patient for patient in own.patients if group_of[patient] == group}
            part = own.only(members)
            found.setdefault(metric, {})[group] = {"mean": part.point, "frozen": frozen.only(members).point, "n": int(part.behind.sum())}
    return found


def cross_client(rows: Iterable[CaseRow], *, metric: str, clients: Sequence[str]) -> dict[str, object]:
    """The block `cross_client`: {metric, rows, columns, values}; rows are models (frozen, global, then clients), columns the clients whose
    test patients were scored (those that trained first, then held-out ones); None where nothing was scored or a class is missing."""
    table = case_table(rows)
    models = [m for m in (FROZEN, GLOBAL, *clients) if m in table.models]
    columns = [c for c in clients if c in table.sites] + sorted(table.sites - set(clients))
    values = [[sample(table, metric, model, data).point for data in columns] for model in models]
    return {"metric": metric, "rows": models, "columns": columns, "values": values}
