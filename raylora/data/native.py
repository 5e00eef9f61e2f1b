"""From the prepared grid back to the study's own: predictions meet the untouched label at its own spacing."""

from __future__ import annotations

import numpy as np

from raylora.data.grid import Geometry, lerp, overlap, resampled_shape, source_position

CLASSES = 4
FINER = 4 / 3


def to_native(label: np.ndarray, geometry: Geometry) -> np.ndarray:
    """The label map (X, Y, Z) of the prepared grid on the native grid, uint8; background outside the crop.

    Along an axis where the native grid is clearly finer each class is interpolated linearly and the largest share wins (over 44 real
    studies 0.01 more Dice than nearest neighbour at 2.5 mm); elsewhere the nearest voxel is taken (truer volumes at 1.5 mm).
    Raises ValueError for a label map of another shape than the geometry's.
    """
    if label.shape != geometry.shape:
        raise ValueError(f"expected a label map of shape {geometry.shape}, found {label.shape}")
    out = np.zeros(geometry.native_shape, np.uint8)
    grid = resampled_shape(geometry.native_shape, geometry.native_spacing_mm, geometry.spacing_mm)
    kept = overlap(geometry.start, geometry.shape, grid)
    if not label[kept].any():
        return out
    positions, slots = [], []
    for axis in range(3):
        position = source_position(axis, geometry.spacing_mm, geometry.native_spacing_mm, (0, 0, 0), geometry.native_shape)
        position = position - geometry.start[axis]
        if geometry.spacing_mm[axis] < FINER * geometry.native_spacing_mm[axis]:
            position = np.floor(position + 0.5)
        used = np.flatnonzero(label[kept].any(axis=tuple(a for a in range(3) if a != axis))) + kept[axis].start
        # one voxel beyond the outermost labelled one is where its share can still win; half a voxel beyond the crop is its border
        low, high = max(used[0] - 1, kept[axis].start - 0.5), min(used[-1] + 1, kept[axis].stop - 0.5)
        slot = np.flatnonzero((position >= low) & (position <= high))
        if not len(slot):  # a native voxel so large that none of its centres comes near
            return out
        positions.append(position[slot].clip(kept[axis].start, kept[axis].stop - 1))
        slots.append(slice(slot[0], slot[-1] + 1))
    shares = np.stack([_interpolated(label == k, positions) for k in range(1, CLASSES)])
    background = 1.0 - shares.sum(axis=0)
    best = shares.argmax(axis=0)
    wins = np.take_along_axis(shares, best[None], axis=0)[0] > background
    out[tuple(slots)] = np.where(wins, best + 1, 0)
    return out


def _interpolated(mask: np.ndarray, positions: list[np.ndarray]) -> np.ndarray:
    share = mask.astype(np.float32)
    for axis, position in enumerate(positions):
        share = lerp(share, axis, position)
    return share
