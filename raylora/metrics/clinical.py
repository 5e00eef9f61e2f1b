"""What a cardiologist reads from the contours: volumes and ejection fraction; and every row that one patient adds to `cases.parquet`."""

from collections.abc import Mapping, Sequence

import numpy as np

from raylora.metrics.segmentation import STRUCTURES, dice_from_counts, hd95_mm, overlap_counts, volume_ml

Row = tuple[str, str, str, float]  # frame (ED, ES, -), structure (LV, MYO, RV, all, EF), metric, value


def ejection_fraction(ed_ml: float, es_ml: float) -> float | None:
    """Ejection fraction in percent of the volume at end-diastole; None where that is zero."""
    return 100.0 * (ed_ml - es_ml) / ed_ml if ed_ml > 0 else None


def ejection_fraction_error(pred_percent: float | None, true_percent: float) -> float:
    """Absolute error in percentage points.

    A prediction without a left ventricle at ED has no ejection fraction: it counts as the worst that could have been said (as an absent
    structure counts as Dice 0), so that a model gains nothing by finding nothing.
    """
    if pred_percent is None:
        return max(true_percent, 100.0 - true_percent)
    return abs(pred_percent - true_percent)


def segmentation_rows(
    pred_frames: Mapping[str, np.ndarray], truth_frames: Mapping[str, np.ndarray], spacing_mm: Sequence[float], *, full: bool = True
) -> list[Row]:
    """Every metric of one patient's segmentation, as (frame, structure, metric, value); a metric that does not exist has no row.

    Args:
        pred_frames, truth_frames: label maps (x, y, z) by frame ("ED", "ES"), on the study's native grid.
        spacing_mm: that grid's voxel size.
        full: False gives Dice alone.

    Frame "-" and structure "all" is the patient's mean over the structures and frames that count (absent from both: not counted).
    """
    if set(pred_frames) != set(truth_frames):
        raise ValueError(f"prediction and truth must have the same frames, got {sorted(pred_frames)} and {sorted(truth_frames)}")
    rows: list[Row] = []
    volumes: dict[tuple[str, str], tuple[float, float]] = {}  # (frame, structure) -> (predicted, true) in ml
    for frame in sorted(truth_frames):
        pred, truth = pred_frames[frame], truth_frames[frame]
        counts = overlap_counts(pred, truth)
        for structure, label in STRUCTURES.items():
            rows += _present(frame, structure, "dice", dice_from_counts(counts, label))
            if full:
                rows += _present(frame, structure, "hd95_mm", hd95_mm(pred == label, truth == label, spacing_mm))
                pair = volume_ml(counts[label].sum(), spacing_mm), volume_ml(counts[:, label].sum(), spacing_mm)
                volumes[frame, structure] = pair
                rows += [(frame, structure, "volume_ml", pair[0]), (frame, structure, "volume_true_ml", pair[1])]
    for metric in ("dice", "hd95_mm"):
        values = [value for _, _, name, value in rows if name == metric]
        rows += _present("-", "all", metric, float(np.mean(values)) if values else None)
    if full and {"ED", "ES"} <= set(truth_frames):
        rows += _ejection_fraction_rows(volumes["ED", "LV"], volumes["ES", "LV"])
    return rows


def grid_rows(pred_frames: Mapping[str, np.ndarray], truth_frames: Mapping[str, np.ndarray]) -> list[Row]:
    """Dice on the prepared grid, where the network works: what CineMA reports, on 1 x 1 x 10 mm. Label maps (x, y, z) by frame; rows
    (frame, structure, "dice_grid", value), with the patient's mean as in `segmentation_rows`. What the crop cut off is not counted."""
    rows = segmentation_rows(pred_frames, truth_frames, (1.0, 1.0, 1.0), full=False)
    return [(frame, structure, "dice_grid", value) for frame, structure, _, value in rows]


def _ejection_fraction_rows(ed_ml: tuple[float, float], es_ml: tuple[float, float]) -> list[Row]:
    """Rows from the (predicted, true) LV volumes at ED and ES. A prediction outside 0 to 100 % is put at the nearer end."""
    pred, true = ejection_fraction(ed_ml[0], es_ml[0]), ejection_fraction(ed_ml[1], es_ml[1])
    pred = None if pred is None else float(np.clip(pred, 0.0, 100.0))
    rows = _present("-", "EF", "lv_ef", pred) + _present("-", "EF", "lv_ef_true", true)
    return rows + ([] if true is None else [("-", "EF", "lv_ef_error", ejection_fraction_error(pred, true))])


def _present(frame: str, structure: str, metric: str, value: float | None) -> list[Row]:
    return [] if value is None else [(frame, structure, metric, float(value))]
