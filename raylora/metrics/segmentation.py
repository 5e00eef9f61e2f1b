"""Overlap, surface distance and volume of one structure in one frame, on any grid; pure numpy and scipy.

Arrays are label maps (x, y, z) of small integers in the internal convention: background 0, RV 1, MYO 2, LV 3.
"""

from collections.abc import Sequence

import numpy as np

STRUCTURES: dict[str, int] = {"LV": 3, "MYO": 2, "RV": 1}
CLASSES = 4


def overlap_counts(pred: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Voxels by (predicted label, true label): (4, 4) int64. Raises ValueError for other labels or for arrays of different shape."""
    if pred.shape != truth.shape:
        raise ValueError(f"prediction and truth must have one shape, got {pred.shape} and {truth.shape}")
    if pred.size and max(int(pred.max()), int(truth.max())) >= CLASSES:
        raise ValueError(f"labels must be 0 to {CLASSES - 1}, got up to {int(pred.max())} (prediction) and {int(truth.max())} (truth)")
    pair = pred.ravel().astype(np.intp) * CLASSES + truth.ravel()
    return np.bincount(pair, minlength=CLASSES * CLASSES).reshape(CLASSES, CLASSES)


def dice_from_counts(counts: np.ndarray, label: int) -> float | None:
    """Twice the common voxels over the sum of both; None if the label is in neither, 0 if it is in one of them only."""
    total = int(counts[label].sum() + counts[:, label].sum())
    return 2.0 * int(counts[label, label]) / total if total else None


def dice(pred: np.ndarray, truth: np.ndarray, label: int) -> float | None:
    """Dice of one label in two label maps of one shape; None if it is absent from both."""
    return dice_from_counts(overlap_counts(pred, truth), label)


def volume_ml(voxels: int, spacing_mm: Sequence[float]) -> float:
    """Volume of a number of voxels; 1 ml = 1000 mm^3."""
    return float(voxels) * float(np.prod(np.asarray(spacing_mm, dtype=np.float64))) / 1000.0


def hd95_mm(pred: np.ndarray, truth: np.ndarray, spacing_mm: Sequence[float]) -> float | None:
    """Symmetric 95th percentile Hausdorff distance between two surfaces, as MONAI defines it (the larger of the two directions).

    Args:
        pred, truth: boolean masks (x, y, z) of one structure.
        spacing_mm: voxel size along x, y, z.

    Returns None if the structure is absent from both, the image diagonal in mm if it is absent from one of them.
    Surfaces are the voxels that lose a face neighbour; distances go from voxel centre to voxel centre. A k-d tree over surface voxels
    was as fast as a distance transform in the union box for good predictions and ten times faster where a stray voxel widens that box.
    """
    if pred.shape != truth.shape:
        raise ValueError(f"prediction and truth must have one shape, got {pred.shape} and {truth.shape}")
    pred, truth = pred.astype(bool), truth.astype(bool)
    found = pred.any(), truth.any()
    if not any(found):
        return None
    spacing = np.asarray(spacing_mm, dtype=np.float64)
    if not all(found):
        return float(np.linalg.norm(np.array(pred.shape) * spacing))
    from scipy.spatial import cKDTree  # a process that never comes here starts sooner without it

    a, b = _surface_mm(pred, spacing), _surface_mm(truth, spacing)  # (n, 3), (m, 3)
    forth, back = cKDTree(b).query(a)[0], cKDTree(a).query(b)[0]
    return float(max(np.percentile(forth, 95), np.percentile(back, 95)))


def _surface_mm(mask: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """Positions (n, 3) in mm of a mask's voxels with one of six neighbours outside it; beyond the image's border is outside."""
    box, start = _bounding_box(mask)
    inside = mask[box]
    padded = np.pad(inside, 1)
    core = inside.copy()
    for axis in range(mask.ndim):
        for shift in (0, 2):
            window = [slice(1, -1)] * mask.ndim
            window[axis] = slice(shift, shift + inside.shape[axis])
            core &= padded[tuple(window)]
    return (np.argwhere(inside & ~core) + start) * spacing


def _bounding_box(mask: np.ndarray) -> tuple[tuple[slice, ...], np.ndarray]:
    """The smallest box around a non-empty mask, and its first corner."""
    slices = []
    for axis in range(mask.ndim):
        hit = np.flatnonzero(mask.any(axis=tuple(i for i in range(mask.ndim) if i != axis)))
        slices.append(slice(int(hit[0]), int(hit[-1]) + 1))
    return tuple(slices), np.array([s.start for s in slices])
