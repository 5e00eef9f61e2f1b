import json

import numpy as np
import pytest

from raylora.metrics.matrix import by_group, cross_client, final, metric_names, sample
from raylora.metrics.panel import panel, panel_interval
from raylora.metrics.rows import CaseRow, case_table


def _dice(model: str, data: str, patient: str, value: float, *, round: int = 3, split: str = "test") -> list[CaseRow]:
    """LV differs by 0.1 between ED and ES; the patient's mean is `value`."""
    at = dict(round=round, split=split, model_of=model, data_of=data, patient=patient, metric="dice")
    return [
        CaseRow(**at, frame="-", structure="all", value=value),
        CaseRow(**at, frame="ED", structure="LV", value=value + 0.05),
        CaseRow(**at, frame="ES", structure="LV", value=value - 0.05),
    ]


def _probability(model: str, data: str, patient: str, label: int, value: float) -> list[CaseRow]:
    at = dict(round=3, split="test", model_of=model, data_of=data, patient=patient, frame="-", structure="diseased")
    return [CaseRow(**at, metric="probability", value=value), CaseRow(**at, metric="label", value=float(label))]


def _threshold(model: str, value: float) -> CaseRow:
    return CaseRow(3, "validation", model, model, "-", "-", "diseased", "threshold", value)


SEGMENTATION = [
    *_dice("global", "A", "a1", 0.8), *_dice("global", "A", "a2", 0.9), *_dice("global", "A", "a3", 0.7),
    *_dice("global", "B", "b1", 0.5),
    *_dice("B", "B", "b1", 0.5), *_dice("B", "B", "b2", 0.7),
    *_dice("frozen", "A", "a1", 0.3, round=0), *_dice("frozen", "A", "a2", 0.5, round=0), *_dice("frozen", "B", "b1", 0.1, round=0),
    *_dice("global", "A", "a1", 0.0, round=2), *_dice("global", "A", "v1", 0.0, split="validation"),
    *_dice("global", "held_out", "h1", 0.4),
]  # fmt: skip


def test_final_is_in_client_and_of_the_last_round():
    block = final(SEGMENTATION, task="segmentation", clients=["A", "B"])["dice"]
    assert block["per_client"] == {"A": pytest.approx(0.8), "B": pytest.approx(0.6)}  # A has no model of its own: the global one
    assert block["mean"] == pytest.approx(0.7)
    assert block["pooled"] == pytest.approx((0.8 + 0.9 + 0.7 + 0.5 + 0.7) / 5)
    assert block["n"] == 5
    assert block["frozen"] == pytest.approx((0.4 + 0.1) / 2)
    low, high = block["ci95"]
    assert 0.5 < low < 0.7 < high < 0.9
    alone = final([row for row in SEGMENTATION if row.patient != "b2"], task="segmentation", clients=["A", "B"])["dice"]
    assert alone["mean"] == pytest.approx(0.65) and alone["ci95"] is None, "of B one patient is known, not how much its patients vary"


def test_final_by_structure_and_absent_metrics():
    blocks = final(SEGMENTATION, task="segmentation", clients=["A", "B"])
    assert blocks["dice_lv"]["mean"] == pytest.approx(0.7)
    assert blocks["hd95_mm"] == {"mean": None, "pooled": None, "ci95": None, "n": 0, "frozen": None, "per_client": {"A": None, "B": None}}
    assert {"dice_myo", "dice_rv", "hd95_mm_lv", "lv_ef_error", "volume_ml_lv"} <= set(blocks)
    json.dumps(blocks, allow_nan=False)


def test_volumes_and_their_errors():
    at = dict(round=0, split="test", model_of="A", data_of="A", patient="p", structure="LV")
    volumes = {("ED", "volume_ml"): 100.0, ("ED", "volume_true_ml"): 110.0, ("ES", "volume_ml"): 50.0, ("ES", "volume_true_ml"): 44.0}
    rows = [CaseRow(**at, frame=frame, metric=metric, value=value) for (frame, metric), value in volumes.items()]
    blocks = final(rows, task="segmentation", clients=["A"])
    assert blocks["volume_ml_lv"]["mean"] == 75.0 and blocks["volume_true_ml_lv"]["mean"] == 77.0
    assert blocks["volume_error_ml_lv"]["mean"] == 8.0
    assert blocks["volume_ml_lv"]["ci95"] is None  # one patient


LABELS = {"a1": 0, "a2": 0, "a3": 1, "a4": 1}
DISEASE = [
    *(row for p, value in zip(LABELS, (0.2, 0.6, 0.7, 0.8), strict=True) for row in _probability("A", "A", p, LABELS[p], value)),
    *(row for p in LABELS for row in _probability("frozen", "A", p, LABELS[p], 0.5)),
    *_probability("B", "B", "b1", 1, 0.9),
    *(_threshold(model, value) for model, value in {"A": 0.65, "B": 0.95, "frozen": 0.5}.items()),
]


def test_disease_at_one_half_and_at_the_tuned_threshold():
    blocks = final(DISEASE, task="disease", clients=["A", "B"])
    assert blocks["balanced_accuracy"]["per_client"] == {"A": 0.75, "B": None}  # B has no normal patient
    assert blocks["balanced_accuracy"]["mean"] == 0.75
    assert blocks["balanced_accuracy_tuned"]["mean"] == 1.0
    assert blocks["sensitivity"]["per_client"] == {"A": 1.0, "B": 1.0}
    assert blocks["sensitivity_tuned"]["per_client"] == {"A": 1.0, "B": 0.0}
    assert blocks["balanced_accuracy_tuned"]["pooled"] == pytest.approx((2 / 3 + 1) / 2)  # each patient at its own model's threshold
    assert blocks["auc"]["mean"] == 1.0 and blocks["auc"]["frozen"] == 0.5
    assert blocks["balanced_accuracy"]["n"] == 4 and (blocks["sensitivity"]["n"], blocks["specificity"]["n"]) == (3, 2), "behind the mean"
    assert list(blocks) == metric_names("disease")
    json.dumps(blocks, allow_nan=False)


def test_one_patient_of_a_class_hides_the_spread_of_what_counts_that_class():
    """Two diseased patients tell how much they vary, whoever else there is."""
    rows = [row for row in DISEASE if row.patient != "a2"]
    blocks = final(rows, task="disease", clients=["A"])
    assert [(blocks[name]["n"], blocks[name]["ci95"] is None) for name in ("sensitivity", "specificity", "balanced_accuracy")] == [
        (2, False),
        (1, True),
        (3, True),
    ]
    table = case_table(rows)
    panels = [panel([(0, {"A": sample(table, name, "A", "A")})]) for name in ("sensitivity", "specificity", "balanced_accuracy")]
    assert [(one.counted, one.degrees, panel_interval(one) is None) for one in panels] == [(2, 1, False), (1, 0, True), (3, 0, True)]


def test_a_model_without_a_threshold_has_no_tuned_score():
    """Its validation cases lacked a class: 0.5 would be one that nobody chose."""
    blocks = final([row for row in DISEASE if row.metric != "threshold" or row.model_of == "frozen"], task="disease", clients=["A"])
    tuned = blocks["balanced_accuracy_tuned"]
    assert (tuned["mean"], tuned["pooled"], tuned["ci95"], tuned["n"], tuned["per_client"]) == (None, None, None, 0, {"A": None})
    assert tuned["frozen"] == 0.5 and blocks["balanced_accuracy"]["mean"] == 0.75


def test_the_frozen_model_is_averaged_over_the_clients_that_the_mean_is_over():
    """B's model has no threshold: a frozen mean over both would be over another hospital's patients as well."""
    frozen_at_b = [row for p, label in (("b1", 1), ("b2", 0)) for row in _probability("frozen", "B", p, label, 0.9 * label)]
    own_at_b = [row for p, label in (("b1", 1), ("b2", 0)) for row in _probability("B", "B", p, label, 0.9)]
    rows = [row for row in DISEASE if row.model_of != "B"] + frozen_at_b + own_at_b
    blocks = final(rows, task="disease", clients=["A", "B"])
    assert blocks["balanced_accuracy"]["frozen"] == 0.75 and blocks["balanced_accuracy"]["n"] == 6
    tuned = blocks["balanced_accuracy_tuned"]
    assert (tuned["mean"], tuned["frozen"], tuned["n"]) == (1.0, 0.5, 4)
    groups = by_group(rows, task="disease", clients=["A", "B"], group_of=dict.fromkeys((*LABELS, "b1", "b2"), "set"))
    assert groups["balanced_accuracy_tuned"]["set"] == {"mean": 1.0, "frozen": 0.5, "n": 4}


def test_cross_client_matrix():
    block = cross_client(SEGMENTATION, metric="dice", clients=["A", "B"])
    assert block["metric"] == "dice"
    assert block["rows"] == ["frozen", "global", "B"] and block["columns"] == ["A", "B", "held_out"]
    expected = [[0.4, 0.1, None], [0.8, 0.5, 0.4], [None, 0.6, None]]
    assert [[None if v is None else round(v, 9) for v in row] for row in block["values"]] == expected


def test_cross_client_threshold_travels_with_its_model():
    rows = [*DISEASE, *_probability("B", "A", "a1", 0, 0.9), *_probability("B", "A", "a3", 1, 0.97)]
    block = cross_client(rows, metric="balanced_accuracy_tuned", clients=["A", "B"])
    assert block["values"][block["rows"].index("B")] == [1.0, None]  # at A's 0.65 both would be diseased


def test_order_of_rows_changes_nothing():
    shuffled = [SEGMENTATION[i] for i in np.random.Generator(np.random.PCG64(0)).permutation(len(SEGMENTATION))]
    assert final(shuffled, task="segmentation", clients=["A", "B"]) == final(SEGMENTATION, task="segmentation", clients=["A", "B"])
    assert case_table(shuffled).sites == {"A", "B", "held_out"}
