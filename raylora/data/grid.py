"""From a study's native grid to the prepared grid: CineMA's preprocessing (`datasets` of Fu et al., arXiv 2506.00679) as pure functions.

A prepared grid has its own spacing, starts where the native one starts (edges aligned: the origin moves by half the difference of the
spacings) and is cropped in x and y. Axes are the file's own voxel axes: nothing is reoriented, because in-plane orientation differs
between short-axis acquisitions anyway and the way back has to be exact.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from raylora.data.cases import LV

Size3 = tuple[int, int, int]
Spacing3 = tuple[float, float, float]
MOTION_BLUR_MM, MOTION_PRIOR_MM, MOTION_PERCENT = 8.0, 80.0, 90.0  # a flat optimum over 40 ACDC studies


@dataclass(frozen=True, kw_only=True, slots=True)
class Geometry:
    """How a prepared array lies on its study's native grid. Index i of an axis is the point (i + start + 0.5) * spacing_mm."""

    native_shape: Size3
    native_spacing_mm: Spacing3
    affine: tuple[tuple[float, ...], ...]  # (4, 4), native voxel -> mm
    spacing_mm: Spacing3
    start: Size3  # of the crop, in voxels of the resampled grid; negative: that many voxels of padding
    shape: Size3  # of the prepared array

    def prepared_affine(self) -> np.ndarray:
        """(4, 4) prepared voxel -> mm; oblique axes stay oblique."""
        scale = np.asarray(self.spacing_mm) / np.asarray(self.native_spacing_mm)
        shift = (np.asarray(self.start) + 0.5) * scale - 0.5
        step = np.eye(4)
        step[:3, :3], step[:3, 3] = np.diag(scale), shift
        return np.asarray(self.affine) @ step


def resampled_shape(shape: Size3, spacing_mm: Spacing3, target_mm: Spacing3) -> Size3:
    """round(n * spacing / target), at least one voxel."""
    return tuple(max(1, round(n * s / t)) for n, s, t in zip(shape, spacing_mm, target_mm, strict=True))


def start_around(centre: tuple[float, float], shape: Size3, size_xy: tuple[int, int]) -> Size3:
    """The crop around a point (resampled voxels, x and y), shifted at the border. Where the image is smaller it is padded on both sides
    (negative start)."""
    start = []
    for middle, length, size in zip(centre, shape, size_xy, strict=False):
        room = length - size
        start.append(room // 2 if room < 0 else min(max(int(middle) - size // 2, 0), room))
    return (start[0], start[1], 0)


def image_centre(shape: Size3) -> tuple[float, float]:
    """The middle of the image: reads nothing."""
    return (shape[0] // 2, shape[1] // 2)


def label_centre(label: np.ndarray) -> tuple[float, float]:
    """CineMA's: the middle of the bounding box of the LV in the resampled ED label (x, y, z)."""
    middle = []
    for axis in range(2):
        inside = np.flatnonzero((label == LV).any(axis=tuple(a for a in range(3) if a != axis)))
        middle.append((int(inside[0]) + int(inside[-1])) // 2)
    return (middle[0], middle[1])


def motion_centre(ed: np.ndarray, es: np.ndarray, spacing_mm: Spacing3) -> tuple[float, float]:
    """Where the image moves between ED and ES: the heart, found without a label. In native voxels, x and y.

    The mean over z of |ED - ES|, smoothed, less weight far from the middle; the centroid of its top tenth.
    """
    from scipy.ndimage import gaussian_filter  # for preparation alone: every other process starts sooner without it

    change = np.abs(np.asarray(ed, np.float32) - es).mean(axis=2)
    change = gaussian_filter(change, [MOTION_BLUR_MM / s for s in spacing_mm[:2]])
    for axis in range(2):
        offset_mm = (np.arange(change.shape[axis]) - (change.shape[axis] - 1) / 2) * spacing_mm[axis]
        weight = np.exp(-0.5 * (offset_mm / MOTION_PRIOR_MM) ** 2)
        change = change * (weight[:, None] if axis == 0 else weight[None, :])
    change = np.clip(change - np.percentile(change, MOTION_PERCENT), 0, None)
    total = float(change.sum())
    if total == 0.0:
        return ((ed.shape[0] - 1) / 2, (ed.shape[1] - 1) / 2)
    return (float(change.sum(axis=1) @ np.arange(ed.shape[0])) / total, float(change.sum(axis=0) @ np.arange(ed.shape[1])) / total)


def linear(image: np.ndarray, spacing_mm: Spacing3, target_mm: Spacing3, start: Size3, shape: Size3) -> np.ndarray:
    """The part (start, shape) of the linearly resampled ``image``, float32. Outside the image: its nearest voxel."""
    out = np.asarray(image, np.float32)
    for axis in np.argsort([n / m for n, m in zip(shape, image.shape, strict=True)]):  # the axis that shrinks most first
        out = lerp(out, int(axis), source_position(axis, spacing_mm, target_mm, start, shape))
    return np.ascontiguousarray(out)


def nearest(label: np.ndarray, spacing_mm: Spacing3, target_mm: Spacing3, start: Size3, shape: Size3) -> np.ndarray:
    """The same part of ``label`` by nearest neighbour; half-way points go up, as in ITK."""
    out = label
    for axis in range(3):
        position = np.floor(source_position(axis, spacing_mm, target_mm, start, shape) + 0.5).astype(int)
        out = out.take(position.clip(0, label.shape[axis] - 1), axis=axis)
    return np.ascontiguousarray(out)


def source_position(axis: int, spacing_mm: Spacing3, target_mm: Spacing3, start: Size3, shape: Size3) -> np.ndarray:
    """Where the target's voxel centres lie on the source's axis, in source voxels."""
    return (np.arange(shape[axis]) + start[axis] + 0.5) * (target_mm[axis] / spacing_mm[axis]) - 0.5


def lerp(array: np.ndarray, axis: int, position: np.ndarray) -> np.ndarray:
    """Linear interpolation along one axis at ``position`` (in voxels); beyond the ends: the end."""
    position = position.clip(0, array.shape[axis] - 1)
    low = np.floor(position).astype(int)
    high = np.minimum(low + 1, array.shape[axis] - 1)
    shape = [1, 1, 1]
    shape[axis] = len(position)
    weight = (position - low).astype(np.float32).reshape(shape)
    if not weight.any():
        return array.take(low, axis=axis)
    lower = array.take(low, axis=axis)
    return lower + weight * (array.take(high, axis=axis) - lower)


def scale_to_unit(image: np.ndarray, clip_percent: tuple[float, float]) -> np.ndarray | None:
    """Clip to two percentiles and scale to 0-1, float32. None for an image without contrast."""
    low, high = np.percentile(image, clip_percent)
    if not high > low:
        return None
    return ((np.clip(image, low, high) - low) / (high - low)).astype(np.float32)


def overlap(start: Size3, shape: Size3, grid: Size3) -> tuple[slice, ...]:
    """The part of a crop (start, shape) that lies on a grid: slices into the crop. What is left out is padding."""
    return tuple(slice(max(0, -s), max(0, min(n, g - s))) for s, n, g in zip(start, shape, grid, strict=True))
