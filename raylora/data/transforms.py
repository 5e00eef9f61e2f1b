"""Augmentation on numpy arrays: one in-plane resampling, then intensities. Every draw comes from the generator that is handed in.

No flips: a mirrored heart has its right ventricle on the wrong side. Ranges are those of CineMA's fine-tuning unless said otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """How far each change goes at strength 1; every one is made with ``probability``."""

    strength: float = 1.0  # scales all ranges; 0: nothing is changed
    probability: float = 0.5
    rotation_deg: float = 30.0
    scale: float = 0.2  # size times 1 - scale to 1 + scale
    translation: float = 0.1  # of the field of view
    gamma: float = 0.5  # exponent 1 - gamma to 1 + gamma
    brightness: float = 0.1
    contrast: float = 0.2  # around the mean
    noise: float = 0.05  # standard deviation
    aspect: float = 1.0  # the voxels' size along y as a multiple of that along x: hearts are turned, not sheared


def augmentation(strength: float, spacing_mm: Sequence[float]) -> Augmentation | None:
    """Of this strength on this grid; None where nothing is changed."""
    return Augmentation(strength=strength, aspect=float(spacing_mm[1] / spacing_mm[0])) if strength else None


def augment(
    image: np.ndarray, label: np.ndarray | None, rng: np.random.Generator, options: Augmentation
) -> tuple[np.ndarray, np.ndarray | None]:
    """New ``image`` (c, x, y, z) float32 in 0-1 and ``label`` (x, y, z); the arguments stay as they are.

    All channels and slices are moved alike. A slice of a channel that is zero throughout (padding, or missing) stays zero.
    """
    size, p = options.strength, options.probability
    if size == 0.0:
        return image, label
    chance = rng.random(6) < p  # drawn in full whatever happens: one change does not shift the draws of the next
    angle, zoom, shift_x, shift_y, gamma, brightness, contrast = size * rng.uniform(-1.0, 1.0, 7)
    filled = np.flatnonzero(image.any(axis=(0, 1, 2)))
    if not len(filled):
        return image, label
    depth = slice(int(filled[0]), int(filled[-1]) + 1)
    part, mask = image[..., depth], None if label is None else label[..., depth]
    if chance[:3].any():
        matrix, offset = _in_plane(
            angle_rad=np.deg2rad(options.rotation_deg) * angle * chance[0],
            zoom=1.0 + options.scale * zoom * chance[1],
            shift=options.translation * chance[2] * np.array([shift_x * image.shape[1], shift_y * image.shape[2]]),
            shape=image.shape[1:3],
            aspect=options.aspect,
        )
        part, mask = _moved(part, mask, matrix, offset)
    if chance[3]:
        part = np.power(part, np.float32(1.0 + options.gamma * gamma))
    if chance[4]:
        mean, factor = float(part.mean(dtype=np.float64)), 1.0 + options.contrast * contrast
        part = part * np.float32(factor) + np.float32(mean * (1.0 - factor) + options.brightness * brightness)
    if chance[5]:
        part = part + np.float32(size * options.noise * rng.random()) * rng.standard_normal(part.shape, np.float32)
    new_image = np.zeros(image.shape, np.float32)
    new_image[..., depth] = np.clip(part, 0.0, 1.0)
    new_image *= image.any(axis=(1, 2), keepdims=True)
    if label is None or mask is None:
        return new_image, None
    new_label = np.zeros_like(label)
    new_label[..., depth] = mask
    return new_image, new_label


def _in_plane(angle_rad: float, zoom: float, shift: np.ndarray, shape: tuple[int, int], aspect: float) -> tuple[np.ndarray, np.ndarray]:
    """(matrix, offset): where in the old plane a voxel of the new one comes from, turning and scaling about the middle."""
    cos, sin = np.cos(angle_rad) / zoom, np.sin(angle_rad) / zoom
    matrix = np.array([[cos, sin * aspect], [-sin / aspect, cos]])
    middle = (np.asarray(shape) - 1) / 2
    return matrix, middle - matrix @ (middle + shift)


def _moved(image: np.ndarray, label: np.ndarray | None, matrix: np.ndarray, offset: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Bilinear for the image, nearest for the label, zero from outside. One gather for all channels and slices."""
    width, height = image.shape[1:3]
    x, y = np.arange(width)[:, None], np.arange(height)[None, :]
    from_x = matrix[0, 0] * x + matrix[0, 1] * y + offset[0]  # (x, y)
    from_y = matrix[1, 0] * x + matrix[1, 1] * y + offset[1]
    low_x, low_y = np.floor(from_x).astype(np.intp), np.floor(from_y).astype(np.intp)
    part_x, part_y = (from_x - low_x).astype(np.float32), (from_y - low_y).astype(np.float32)
    low_x, low_y, part_x, part_y = (a.ravel() for a in (low_x, low_y, part_x, part_y))
    planes = image.reshape(image.shape[0], width * height, -1)
    out = np.zeros_like(planes)
    for dx, weight_x in ((0, 1 - part_x), (1, part_x)):
        for dy, weight_y in ((0, 1 - part_y), (1, part_y)):
            index, there = _flat(low_x + dx, low_y + dy, width, height)
            out += (weight_x * weight_y * there)[None, :, None] * planes.take(index, axis=1)
    if label is None:
        return out.reshape(image.shape), None
    index, there = _flat(np.floor(from_x + 0.5).astype(np.intp).ravel(), np.floor(from_y + 0.5).astype(np.intp).ravel(), width, height)
    moved = label.reshape(width * height, -1).take(index, axis=0) * there[:, None].astype(label.dtype)
    return out.reshape(image.shape), moved.reshape(label.shape)


def _flat(x: np.ndarray, y: np.ndarray, width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices into a flattened plane, and whether the voxel is inside; one outside points at some voxel and counts as zero."""
    there = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    return np.where(there, x * height + y, 0), there
