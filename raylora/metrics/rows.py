"""The rows of `cases.parquet`, and how a patient's scores are read from them. One row per metric; averages are made from rows only."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from raylora.metrics.segmentation import STRUCTURES

FROZEN, GLOBAL = "frozen", "global"


class CaseRow(NamedTuple):
    """One row; `CaseRow._fields` are the columns, in order."""

    round: int
    split: str  # validation, test
    model_of: str  # frozen, global, or the id of the client whose full model it is, private parts included
    data_of: str  # client id
    patient: str  # "-" for a threshold
    frame: str  # ED, ES, -
    structure: str  # LV, MYO, RV, all, diseased, EF
    metric: str
    value: float


Scores = Mapping[str, float]  # patient -> value
Raw = Mapping[tuple[str, str, str], float]  # one patient's (frame, structure, metric) -> value


@dataclass(frozen=True)
class CaseTable:
    """Rows of one split, for each model those of its last round."""

    patients: Mapping[tuple[str, str], Mapping[str, Raw]]  # (model_of, data_of) -> patient -> raw rows
    thresholds: Mapping[str, float]  # model_of -> the threshold that travels with it

    @property
    def models(self) -> set[str]:
        return {model for model, _ in self.patients}

    @property
    def sites(self) -> set[str]:
        return {data for _, data in self.patients}

    def own_model(self, client: str) -> str:
        """The model that `client` would use at home: its own if it has one, else the global one."""
        return client if (client, client) in self.patients else GLOBAL


def case_table(rows: Iterable[CaseRow], split: str = "test") -> CaseTable:
    """Index the rows of one split. Thresholds are taken from whichever split they were written with, from a model's last round."""
    kept: dict[tuple[str, str], dict[str, dict[tuple[str, str, str], float]]] = defaultdict(lambda: defaultdict(dict))
    last: dict[str, int] = {}
    thresholds: dict[str, tuple[int, float]] = {}
    rows = [CaseRow(*row) for row in rows]
    for row in rows:
        if row.metric == "threshold":
            known = thresholds.get(row.model_of)
            if known is None or row.round > known[0]:
                thresholds[row.model_of] = row.round, row.value
        elif row.split == split:
            last[row.model_of] = max(row.round, last.get(row.model_of, row.round))
    keys: dict[tuple[str, str, str], tuple[str, str, str]] = {}  # one object a key, not one a row: tables of hundreds of runs are kept
    for row in rows:
        if row.split == split and row.metric != "threshold" and row.round == last[row.model_of]:
            key = row[5:8]
            kept[row.model_of, row.data_of][row.patient][keys.setdefault(key, key)] = float(row.value)
    return CaseTable(patients=kept, thresholds={model: value for model, (_, value) in thresholds.items()})


def segmentation_metrics() -> dict[str, tuple[str, str | None]]:
    """The names of `final` for segmentation: name -> (metric of the rows, structure or None for the patient's own mean row)."""
    names: dict[str, tuple[str, str | None]] = {}
    for metric in ("dice", "hd95_mm"):
        names[metric] = metric, None
        names |= {f"{metric}_{structure.lower()}": (metric, structure) for structure in STRUCTURES}
    names["dice_grid"] = "dice_grid", None
    names["lv_ef_error"] = "lv_ef_error", None
    for metric in ("volume_ml", "volume_true_ml", "volume_error_ml"):
        names |= {f"{metric}_{structure.lower()}": (metric, structure) for structure in STRUCTURES}
    return names


def patient_scores(patients: Mapping[str, Raw], name: str) -> Scores:
    """One value a patient for a metric's name in `final`; patients without it are left out. ED and ES are averaged."""
    metric, structure = segmentation_metrics()[name]
    found = {patient: _value(raw, metric, structure) for patient, raw in sorted(patients.items())}
    return {patient: value for patient, value in found.items() if value is not None}


def _value(raw: Raw, metric: str, structure: str | None) -> float | None:
    if metric == "lv_ef_error":
        return raw.get(("-", "EF", metric))
    if structure is None:
        return raw.get(("-", "all", metric))
    if metric == "volume_error_ml":
        values = [
            abs(raw[frame, structure, "volume_ml"] - value)
            for (frame, s, m), value in raw.items()
            if (s, m) == (structure, "volume_true_ml")
        ]
    else:
        values = [value for (_, s, m), value in raw.items() if (s, m) == (structure, metric)]
    return float(np.mean(values)) if values else None
