"""A heart painted into a slice: ventricles with papillary muscles and trabeculae, pericardial fat; above the base atria and vessels."""

from __future__ import annotations

import numpy as np

from raylora.data.phantom_anatomy import DIRECTIONS, Chambers, direction_index, epicardium_mm, surfaces
from raylora.data.phantom_paint import Array, Palette, Plane, ellipse_mm
from raylora.data.phantom_thorax import RV_WALL_MM, Body

ATRIA_MM = 45.0  # how far the atria reach above the mitral plane
PAPILLARIES = (2.05, -2.2)  # anterolateral, posteromedial: radians from the septum


def paint_heart(
    canvas: Array, at: Plane, r: Array, direction: Array, w_mm: float, septum: float, heart: Chambers, person: Body, paint: Palette
) -> Array:
    """A copy of the canvas with the heart at one height.

    Args: r (mm from the axis), direction (index, see `direction_index`), both (n, m); septum: its direction in the picture, radians.
    """
    out = canvas.copy()
    height = w_mm / heart.length_mm
    if height > 1:
        return _paint_great_vessels(out, at, w_mm - heart.length_mm, septum, heart, person, paint)
    slice_, theta, fine, coarse, p, tissue = surfaces(heart, w_mm), DIRECTIONS, at.fine, at.coarse, person.phases, paint.signal

    def within(radius_mm: Array) -> Array:  # (TURN,) -> signed distance (n, m), positive inside; nothing where the radius is 0
        return np.where(radius_mm > 0, radius_mm, -9.0).astype(np.float32)[direction] - r

    rv_present = slice_.rv_depth > 0
    outer = slice_.epicardium + slice_.rv_depth + RV_WALL_MM * np.clip(slice_.rv_depth / 6, 0, 1)
    grooves = np.exp(-((np.abs(theta) - 1.25) ** 2) / 0.1)
    fat_mm = person.pericardial_fat_mm * (1 + 0.6 * np.cos(theta + p[8]) + 0.5 * np.cos(3 * theta + p[6])) + 3.0 * grooves * height
    sack = np.where(outer > 0, outer + np.clip(fat_mm, 0.3, None), 0)
    in_sack = within(sack)
    paint.over(out, in_sack + 1.0, tissue["myocardium"])  # pericardium
    paint.over(out, in_sack, tissue["fat"] * (0.85 + 0.08 * coarse))
    myocardium = tissue["myocardium"] * (1 + 0.08 * fine + 0.05 * coarse)
    blood = tissue["blood"] * (1 + 0.035 * fine + 0.06 * coarse)
    paint.over(out, within(outer), myocardium)
    # Trabeculae are in the picture only: labels follow the smooth wall behind them.
    ridges = np.clip(np.cos(9 * theta + p[9] + 0.25 * w_mm) + np.cos(14 * theta + p[10] - 0.2 * w_mm), 0, 2)
    ridges *= 1.5 - max(height, 0)  # more of them towards the apex
    rv_blood = within(np.where(rv_present, slice_.epicardium + slice_.rv_depth - 1.4 * ridges * np.clip(slice_.rv_depth / 8, 0, 1), 0))
    in_free_wall = within(slice_.epicardium + slice_.rv_depth)
    strand = np.minimum(0.9 - 6 * np.abs(fine + 0.3), in_free_wall + 2)
    strand = np.minimum(strand, 0.4 * slice_.rv_depth.astype(np.float32)[direction] - in_free_wall)
    paint.over(out, rv_blood, 0.95 * blood)
    paint.over(out, np.minimum(strand, rv_blood) / 3, 1.4 * myocardium)
    paint.over(out, within(slice_.epicardium), myocardium)
    paint.over(out, within(np.clip(slice_.endocardium - ridges, 0, None)), blood)
    if 0.25 < height < 0.78:
        size_mm = (2.6 + 0.17 * heart.wall_mm) * float(np.sqrt(np.clip(1 - ((height - 0.5) / 0.28) ** 2, 0.05, 1)))
        for angle, phase in zip(PAPILLARIES, p, strict=False):
            turn = angle + 0.3 * float(np.sin(phase))
            distance_mm = max(float(slice_.endocardium[direction_index(np.float64(turn))]) - 1.3 * size_mm - 0.5, 0)
            centre = (distance_mm * float(np.cos(turn + septum)), distance_mm * float(np.sin(turn + septum)))
            paint.over(out, ellipse_mm(at, centre, (1.3 * size_mm, size_mm), turn + septum), 1.1 * myocardium)
    return out


def _paint_great_vessels(out: Array, at: Plane, above_mm: float, septum: float, heart: Chambers, person: Body, paint: Palette) -> Array:
    """Atria, aortic root and outflow tract above the mitral plane; the atria fill while the ventricles empty."""
    shrink = float(np.sqrt(np.clip(1 - (above_mm / ATRIA_MM) ** 2, 0, 1)))
    if shrink == 0:
        return out
    tissue = paint.signal
    blood = tissue["blood"] * (0.97 + 0.035 * at.fine + 0.06 * at.coarse)
    scale = float(epicardium_mm(heart, np.float64(np.pi), np.float64(0.98 * heart.length_mm))) / 34
    filling = shrink * (1.2 - 0.2 * min(heart.radius_mm / 27, 1.3))

    def place(angle: float, distance_mm: float) -> tuple[float, float]:
        return distance_mm * scale * float(np.cos(septum + angle)), distance_mm * scale * float(np.sin(septum + angle))

    parts = (  # right and left atrium, outflow tract, aortic root
        (place(-0.5, 42), (25 * filling * scale, 29 * filling * scale)),
        (place(-2.4, 11), (31 * filling * scale, 24 * filling * scale)),
        (place(0.9, 37), (17.0 * scale, 21.0 * scale)),
        (place(0.3, 16), (17.0 * scale, 17.0 * scale)),
    )
    hull = ellipse_mm(at, place(0.15, 24), (44 * shrink * scale, 52 * shrink * scale), septum)
    paint.over(out, hull + 2 * at.coarse, tissue["fat"] * (0.75 + 0.08 * at.coarse))
    shapes = [ellipse_mm(at, centre, half_axes, septum) for centre, half_axes in parts]
    for shape in shapes:
        paint.over(out, shape + 3 + person.pericardial_fat_mm, tissue["fat"] * (0.8 + 0.08 * at.coarse))
    for shape in shapes:
        paint.over(out, shape + 1.6, 0.9 * tissue["myocardium"])
        paint.over(out, shape, blood)
    return out


def heart_reach_mm(heart: Chambers) -> float:
    """A circle about the axis that holds the ventricles, their fat and the atria."""
    ventricles = heart.radius_mm + 1.5 * heart.wall_mm + 1.1 * heart.rv_depth_mm + 16
    return max(ventricles, 82 * (heart.radius_mm + heart.wall_mm) / 34)
