"""The same study in two data sets, found by what the image shows.

M&Ms and M&Ms-2 come partly from the same hospitals. A fingerprint is a thumbnail of the ED image over its whole field of view, so it
survives other intensities, another ED frame nearby, cropped borders of a few per cent, and flipped or swapped axes.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from itertools import product
from typing import Protocol

import numpy as np

SIDE, LEVELS = 24, 3  # of the thumbnail: in-plane, along z
SAME = 0.965  # correlation; two of 44 real patients of three sets reach 0.83, two phantoms 0.93, ED and ES of one patient mostly 0.98


class Fingerprinted(Protocol):
    id: str
    dataset: str
    fingerprint: str


def fingerprint(image: np.ndarray) -> str:
    """A thumbnail (SIDE, SIDE, LEVELS) of ``image`` (x, y, z), in bytes, as base64."""
    small = np.asarray(image, np.float32)
    for axis, count in enumerate((SIDE, SIDE, LEVELS)):
        small = _means(small, axis, count)
    small = np.sqrt(np.clip(small - small.min(), 0, None))  # coils make the near chest wall very bright
    top = float(small.max()) or 1.0
    return base64.b64encode(np.round(255 * small / top).astype(np.uint8).tobytes()).decode()


def pairs(rows: Sequence[Fingerprinted]) -> list[tuple[str, str, float]]:
    """(id, id, correlation) of the studies of different data sets that show the same patient, sorted by id."""
    found = []
    vectors = {row.id: _views(row.fingerprint) for row in rows}
    ordered = sorted(rows, key=lambda row: (row.dataset, row.id))
    for i, first in enumerate(ordered):
        others = [row for row in ordered[i + 1 :] if row.dataset != first.dataset]
        if not others:
            continue
        upright = np.stack([vectors[row.id][0] for row in others])  # (others, voxels)
        best = (upright @ vectors[first.id].T).max(axis=1)
        found += [(first.id, row.id, float(r)) for row, r in zip(others, best, strict=True) if r >= SAME]
    return sorted(found)


def _means(array: np.ndarray, axis: int, count: int) -> np.ndarray:
    """The means of ``count`` equal parts along an axis; voxels at a border are shared."""
    size = array.shape[axis]
    total = np.concatenate([np.zeros_like(array.take([0], axis=axis)), array.cumsum(axis=axis, dtype=np.float64)], axis=axis)
    edges = np.linspace(0, size, count + 1)
    low = np.minimum(np.floor(edges).astype(int), size - 1)
    shape = [1, 1, 1]
    shape[axis] = count + 1
    upto = total.take(low, axis=axis) + (edges - low).reshape(shape) * (total.take(low + 1, axis=axis) - total.take(low, axis=axis))
    return np.diff(upto, axis=axis) / (size / count)


def _views(text: str) -> np.ndarray:
    """(16, voxels): the thumbnail in every in-plane orientation and both directions of z, each of zero mean and unit length."""
    small = np.frombuffer(base64.b64decode(text), np.uint8).reshape(SIDE, SIDE, LEVELS).astype(np.float64)
    views = []
    for swap, x, y, z in product((False, True), (1, -1), (1, -1), (1, -1)):
        view = (small.swapaxes(0, 1) if swap else small)[::x, ::y, ::z].ravel()
        view = view - view.mean()
        views.append(view / (np.linalg.norm(view) or 1.0))
    return np.stack(views)
