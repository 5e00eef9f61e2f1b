import numpy as np
import pytest

from raylora.metrics.clinical import ejection_fraction, ejection_fraction_error, grid_rows, segmentation_rows

SPACING_MM = (1.0, 1.0, 10.0)


def _heart(lv: int, myo: int, rv: int) -> np.ndarray:
    """A label map with so many voxels of each structure, in one line."""
    line = np.zeros((60, 1, 2), np.uint8)
    line[:lv, 0, 0], line[20 : 20 + myo, 0, 0], line[40 : 40 + rv, 0, 0] = 3, 2, 1
    return line


def test_ejection_fraction():
    assert ejection_fraction(120.0, 48.0) == pytest.approx(60.0)
    assert ejection_fraction(0.0, 1.0) is None
    assert ejection_fraction_error(50.0, 62.0) == pytest.approx(12.0)
    assert ejection_fraction_error(None, 62.0) == pytest.approx(62.0)
    assert ejection_fraction_error(None, 30.0) == pytest.approx(70.0)


def test_rows_of_a_patient_by_hand():
    truth = {"ED": _heart(10, 5, 8), "ES": _heart(4, 6, 5)}
    pred = {"ED": _heart(8, 5, 8), "ES": _heart(4, 6, 0)}
    rows = {row[:3]: row[3] for row in segmentation_rows(pred, truth, SPACING_MM)}
    assert rows["ED", "LV", "dice"] == pytest.approx(2 * 8 / 18)
    assert rows["ES", "RV", "dice"] == 0.0
    assert rows["ES", "RV", "hd95_mm"] == pytest.approx(np.sqrt(60**2 + 1 + 20**2))
    assert rows["-", "all", "dice"] == pytest.approx((16 / 18 + 1 + 1 + 1 + 1 + 0) / 6)
    assert rows["ED", "LV", "volume_ml"] == pytest.approx(0.08)
    assert rows["ED", "LV", "volume_true_ml"] == pytest.approx(0.10)
    assert rows["-", "EF", "lv_ef"] == pytest.approx(50.0)
    assert rows["-", "EF", "lv_ef_true"] == pytest.approx(60.0)
    assert rows["-", "EF", "lv_ef_error"] == pytest.approx(10.0)
    assert all(np.isfinite(value) for value in rows.values())


def test_dice_on_the_prepared_grid_has_a_name_of_its_own():
    truth, pred = {"ED": _heart(10, 5, 8), "ES": _heart(4, 6, 5)}, {"ED": _heart(8, 5, 8), "ES": _heart(4, 6, 0)}
    rows = {row[:3]: row[3] for row in grid_rows(pred, truth)}
    assert rows.pop(("-", "all", "dice_grid")) == pytest.approx(np.mean(list(rows.values())))
    assert rows["ED", "LV", "dice_grid"] == pytest.approx(2 * 8 / 18) and rows["ES", "RV", "dice_grid"] == 0.0 and len(rows) == 6


def test_a_structure_absent_from_both_is_not_counted():
    truth = {"ED": _heart(10, 5, 0), "ES": _heart(4, 6, 0)}
    rows = {row[:3]: row[3] for row in segmentation_rows(truth, truth, SPACING_MM)}
    assert ("ED", "RV", "dice") not in rows and ("ED", "RV", "hd95_mm") not in rows
    assert rows["-", "all", "dice"] == 1.0 and rows["-", "all", "hd95_mm"] == 0.0


def test_dice_alone():
    truth = {"ED": _heart(10, 5, 8), "ES": _heart(4, 6, 5)}
    assert {metric for _, _, metric, _ in segmentation_rows(truth, truth, SPACING_MM, full=False)} == {"dice"}


def test_a_prediction_without_left_ventricle_is_the_worst_not_the_absent():
    truth = {"ED": _heart(10, 5, 8), "ES": _heart(4, 6, 5)}
    rows = {row[:3]: row[3] for row in segmentation_rows({f: np.zeros_like(t) for f, t in truth.items()}, truth, SPACING_MM)}
    assert ("-", "EF", "lv_ef") not in rows
    assert rows["-", "EF", "lv_ef_error"] == pytest.approx(60.0)
    grown = {"ED": _heart(1, 5, 8), "ES": _heart(10, 6, 5)}  # an ejection fraction of -900 %
    assert {row[:3]: row[3] for row in segmentation_rows(grown, truth, SPACING_MM)}["-", "EF", "lv_ef"] == 0.0


def test_frames_must_agree():
    with pytest.raises(ValueError, match="same frames"):
        segmentation_rows({"ED": _heart(1, 1, 1)}, {"ES": _heart(1, 1, 1)}, SPACING_MM)
