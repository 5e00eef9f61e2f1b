"""Brushes: where the pixels of a slice are, what its tissues look like, and how one is painted over another with a soft border.

A canvas holds signal in units of the blood's (blood pool = 1). Positions are in mm from the axis of the left ventricle: x towards the
patient's left and back, y towards the feet (down in the picture); the septum lies at negative x.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter

Array = np.ndarray
Box = tuple[slice, slice]


@dataclass(frozen=True, kw_only=True)
class Plane:
    """The pixels of one slice, all (n, m) float32: positions in mm, and the unit-variance noise that makes tissue uneven."""

    x: Array
    y: Array
    fine: Array  # a few mm
    coarse: Array  # a centimetre

    def within(self, box: Box) -> Plane:
        return Plane(x=self.x[box], y=self.y[box], fine=self.fine[box], coarse=self.coarse[box])

    def next(self, step: int, shift_mm: tuple[float, float]) -> Plane:
        """Another slice: seen with the body shifted, with noise of its own."""
        dx, dy = (np.float32(d) for d in shift_mm)
        fine, coarse = np.roll(self.fine, (37 * step, 61 * step), (0, 1)), np.roll(self.coarse, (3 * step, 5 * step), (0, 1))
        return Plane(x=self.x + dx, y=self.y + dy, fine=fine, coarse=coarse)


@dataclass(frozen=True, kw_only=True)
class Palette:
    """What a scanner makes of tissue."""

    signal: Mapping[str, float]  # blood, myocardium, fat, muscle, liver, spleen, lung, bone
    softness_mm: float  # of a border: a pixel

    def over(self, canvas: Array, inside_mm: Array, signal: float | Array) -> None:
        """Paints in place where the signed distance ``inside_mm`` is positive, with a soft border (partial volume)."""
        cover = np.float32(0.5) + inside_mm * np.float32(1 / self.softness_mm)
        np.clip(cover, 0, 1, out=cover)
        cover *= signal - canvas
        canvas += cover


def plane(x: Array, y: Array, pixel_mm: float, rng: np.random.Generator) -> Plane:
    """The pixels at these positions, with fresh noise."""

    def smooth(sigma_mm: float) -> Array:
        field = gaussian_filter(rng.standard_normal(x.shape, dtype=np.float32), sigma_mm / pixel_mm, mode="wrap", truncate=3)
        return field / field.std()

    return Plane(x=x, y=y, fine=smooth(1.8), coarse=smooth(9.0))


def ellipse_mm(at: Plane, centre: tuple[float, float], half_axes: tuple[float, float], turn: float = 0.0) -> Array:
    """Signed distance, positive inside: exact for circles, close for others."""
    cos, sin = np.float32(np.cos(turn)), np.float32(np.sin(turn))
    dx, dy = at.x - np.float32(centre[0]), at.y - np.float32(centre[1])
    u, v = (dx * cos + dy * sin) * np.float32(1 / half_axes[0]), (dy * cos - dx * sin) * np.float32(1 / half_axes[1])
    return (1 - np.sqrt(u * u + v * v)) * np.float32(np.sqrt(half_axes[0] * half_axes[1]))
