"""What surrounds and fills a heart in one short-axis slice: tissues painted over each other, with soft borders (partial volume).

A canvas holds signal in units of the blood's (blood pool = 1). Positions are in mm from the axis of the left ventricle: x towards the
patient's left and back, y towards the feet (down in the picture); the septum lies at negative x.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter, map_coordinates

from raylora.data.phantom_anatomy import Chambers, endocardium_mm, epicardium_mm, profile, rv_depth_mm, wrapped

Array = np.ndarray
Tissues = Mapping[str, float]  # blood, myocardium, fat, muscle, liver, spleen, lung, bone -> signal
RV_WALL_MM = 3.0
ATRIA_MM = 45.0  # how far the atria reach above the mitral plane


@dataclass(frozen=True, kw_only=True)
class Body:
    """One thorax."""

    fat_mm: float  # under the skin
    half_width_mm: float  # front to back
    half_height_mm: float
    centre_mm: tuple[float, float]
    diaphragm_mm: float  # below the axis at mid-heart
    liver_edge_mm: float
    pericardial_fat_mm: float
    phases: Array  # (12,) random phases of everything that is irregular


@dataclass(frozen=True, kw_only=True)
class Grain:
    """Smooth noise in space, unit variance: tissue that is not uniform. Two scales, each (n, n) and periodic."""

    fine: Array
    coarse: Array
    step_mm: float


def body(rng: np.random.Generator, bmi: float) -> Body:
    return Body(
        fat_mm=float(np.clip(6 + 1.1 * (bmi - 19) + rng.normal(0, 2), 5, 32)),
        half_width_mm=float(105 + 1.2 * (bmi - 25) + rng.normal(0, 5)),
        half_height_mm=float(170 + rng.normal(0, 8)),
        centre_mm=(float(34 + rng.normal(0, 5)), float(10 + rng.normal(0, 8))),
        diaphragm_mm=float(rng.normal(6, 4)),
        liver_edge_mm=float(rng.normal(8, 10)),
        pericardial_fat_mm=float(np.clip(rng.normal(4.5, 2), 1, 10)),
        phases=rng.uniform(0, 2 * np.pi, 12),
    )


def grain(rng: np.random.Generator, size: int = 256, step_mm: float = 1.5) -> Grain:
    def smooth(sigma_mm: float) -> Array:
        field = gaussian_filter(rng.standard_normal((size, size)).astype(np.float32), sigma_mm / step_mm, mode="wrap")
        return field / field.std()

    return Grain(fine=smooth(1.8), coarse=smooth(9.0), step_mm=step_mm)


def _sample(field: Array, step_mm: float, x: Array, y: Array, w_mm: float) -> Array:
    """The noise at these points; a height of 25 mm moves it by a quarter of the field, so that neighbouring slices resemble each other a little."""
    return map_coordinates(field, np.stack([x / step_mm + 0.9 * w_mm, y / step_mm + 0.5 * w_mm]), order=1, mode="grid-wrap")


def _over(canvas: Array, inside_mm: Array, softness_mm: float, signal: float | Array) -> None:
    """Paints where ``inside_mm`` (signed distance, positive inside) says so, in place, with a border as wide as ``softness_mm``."""
    cover = np.clip(0.5 + inside_mm / softness_mm, 0, 1)
    canvas += cover * (signal - canvas)


def _ellipse(x: Array, y: Array, cx: float, cy: float, a: float, b: float, turn: float = 0.0) -> Array:
    """Signed distance, positive inside (exact for circles, close for others)."""
    u, v = (x - cx) * np.cos(turn) + (y - cy) * np.sin(turn), (y - cy) * np.cos(turn) - (x - cx) * np.sin(turn)
    rho = np.hypot(u / a, v / b)
    return (1 - rho) * np.minimum(a, b) * (1 if a == b else 1.1)


def paint_thorax(x: Array, y: Array, w_mm: float, length_mm: float, person: Body, tissue: Tissues, texture: Grain, softness_mm: float) -> Array:
    """Everything but the heart. Args: x, y (n, m) mm. Returns the canvas (n, m)."""
    height = w_mm / length_mm
    fine, coarse = (_sample(f, texture.step_mm, x, y, w_mm) for f in (texture.fine, texture.coarse))
    p = person.phases
    canvas = np.zeros(x.shape, np.float32)
    cx, cy = person.centre_mm
    u, v = (x - cx) / person.half_width_mm, (y - cy) / person.half_height_mm
    angle = np.arctan2(v, u)
    rho = (np.abs(u) ** 2.6 + np.abs(v) ** 2.6) ** (1 / 2.6)
    depth = (1 - rho + 0.02 * np.sin(3 * angle + p[0])) * person.half_width_mm  # below the skin
    fat_mm = person.fat_mm * (1 + 0.35 * np.sin(2 * angle + p[1]) + 0.2 * np.sin(5 * angle + p[2]) - 0.15 * height)
    _over(canvas, depth, softness_mm, tissue["fat"] * (1 + 0.06 * coarse))
    _over(canvas, depth - fat_mm, softness_mm, tissue["muscle"] * (1 + 0.12 * fine))
    _over(canvas, np.minimum(depth - fat_mm - 4 - 2 * coarse, 1.2 - np.abs(depth - fat_mm - 6 - 2 * coarse)), softness_mm, 0.8 * tissue["fat"])
    ribs = 4.5 - np.hypot(depth - fat_mm - 9, (wrapped(9 * angle + p[3] + 0.12 * w_mm) / 9) * 120)
    _over(canvas, ribs + 1.5, softness_mm, tissue["bone"])
    _over(canvas, ribs - 0.5, softness_mm, 0.55 * tissue["fat"])
    inner = depth - fat_mm - 15
    _over(canvas, inner, softness_mm, 0.7 * tissue["fat"])
    _over(canvas, inner - 1.5, softness_mm, tissue["lung"] * (1 + 0.3 * coarse))
    vessels = (fine - 1.75) * 2.2 - 0.02 * np.abs(np.hypot(x, y) - 75)
    _over(canvas, np.minimum(vessels, inner - 12), softness_mm, 0.6 * tissue["blood"])
    # Abdomen under the diaphragm's dome; nearer to the apex the slice cuts more of it.
    dome = 46 + person.diaphragm_mm + 22 * np.clip(height - 0.2, -0.6, 1.4) + 0.0028 * (x + 10) ** 2 + 3 * np.sin(x / 28 + p[4])
    abdomen = np.minimum(y - dome, inner)
    _over(canvas, abdomen, softness_mm, tissue["fat"] * (0.75 + 0.1 * coarse))
    edge = person.liver_edge_mm + 25 * np.sin(y / 45 + p[5]) - 18 * (1 - height)
    liver = np.minimum(abdomen - 2, edge - x)
    _over(canvas, liver, softness_mm, tissue["liver"] * (1 + 0.05 * coarse + 0.04 * fine))
    _over(canvas, np.minimum((fine - 1.95) * 3, liver - 5), softness_mm, 0.85 * tissue["blood"])
    stomach = np.minimum(_ellipse(x, y, edge + 34, dome + 24, 27, 19, 0.5), abdomen - 1)
    _over(canvas, stomach, softness_mm, 1.1 * tissue["muscle"])
    _over(canvas, stomach - 4, softness_mm, tissue["muscle"] * (0.75 + 0.5 * np.clip(coarse, -1, 1)))
    spleen = np.minimum(_ellipse(x, y, 88.0, 92 + 20 * height, 24, 40, -0.35), abdomen - 2)
    _over(canvas, spleen, softness_mm, tissue["spleen"] * (1 + 0.06 * fine))
    bowel = np.minimum((coarse - 0.55) * 12, abdomen - 40)
    _over(canvas, np.minimum(bowel, np.minimum(-liver, -spleen)), softness_mm, 1.2 * tissue["muscle"])
    # Spine and descending aorta at the back.
    spine = _ellipse(x, y, cx + person.half_width_mm - person.fat_mm - 30, 48 + 10 * np.sin(p[6]), 24, 30)
    _over(canvas, spine + 9, softness_mm, tissue["muscle"] * (1 + 0.2 * fine))
    _over(canvas, spine, softness_mm, 0.45 * tissue["fat"] * (1 + 0.12 * fine))
    aorta = _ellipse(x, y, cx + person.half_width_mm - person.fat_mm - 72, 38 + 6 * np.sin(p[7]) + 0.12 * w_mm, 11, 11)
    _over(canvas, aorta + 3, softness_mm, 0.7 * tissue["fat"])
    _over(canvas, aorta + 1.2, softness_mm, tissue["myocardium"])
    _over(canvas, aorta, softness_mm, 0.95 * tissue["blood"])
    return canvas


def paint_heart(
    canvas: Array, x: Array, y: Array, w_mm: float, septum: float, heart: Chambers, person: Body, tissue: Tissues, texture: Grain, softness_mm: float
) -> Array:
    """A copy of ``canvas`` with the heart at height ``w_mm``. Args: x, y (n, m) mm from the axis; septum: its direction, radians."""
    out = canvas.copy()
    r, theta = np.hypot(x, y), wrapped(np.arctan2(y, x) - septum)
    fine, coarse = (_sample(f, texture.step_mm, x, y, w_mm) for f in (texture.fine, texture.coarse))
    if w_mm > heart.length_mm:
        return _paint_great_vessels(out, x, y, w_mm - heart.length_mm, septum, heart, person, tissue, fine, coarse, softness_mm)
    w, p = np.float32(w_mm), person.phases
    epicardium, endocardium, depth = epicardium_mm(heart, theta, w), endocardium_mm(heart, theta, w), rv_depth_mm(heart, theta, w)
    rv_wall = np.where(depth > 0, RV_WALL_MM, 0.0)
    outer = epicardium + depth + rv_wall
    fat_mm = person.pericardial_fat_mm * (0.7 + 0.8 * np.cos(theta + p[8]) + 0.9 * np.exp(-((np.abs(theta) - 1.25) ** 2) / 0.12) + 0.3 * coarse)
    sack = np.where(outer > 0, outer + np.clip(fat_mm, 0.6, None), 0) - r
    _over(out, sack + 1.2, softness_mm, tissue["myocardium"])  # pericardium
    _over(out, sack, softness_mm, tissue["fat"] * (0.9 + 0.08 * coarse))
    myocardium = tissue["myocardium"] * (1 + 0.10 * fine + 0.06 * coarse)
    _over(out, np.where(outer > 0, outer - r, -9), softness_mm, myocardium)
    blood = tissue["blood"] * (1 + 0.035 * fine + 0.06 * coarse)
    ridges = 0.5 * (np.cos(9 * theta + p[9] + 0.3 * w) + np.cos(14 * theta + p[10] - 0.2 * w))  # trabeculae, in the picture only
    coarse_wall = np.clip(ridges, 0, 1) * (1 + 2.0 * (1 - w_mm / heart.length_mm))
    rv_edge = np.minimum(epicardium + depth - 1.2 * coarse_wall - r, r - epicardium)
    _over(out, np.where(depth > 0, rv_edge, -9), softness_mm, 0.93 * blood)
    strands = np.minimum((np.abs(fine) < 0.16) * 1.5 - 0.6, np.minimum(rv_edge, 0.45 * depth - (r - epicardium - 0.55 * depth)))
    _over(out, np.where((depth > 0) & (r > epicardium + 0.45 * depth), strands, -9), 2 * softness_mm, 1.3 * myocardium)
    _over(out, epicardium - r, softness_mm, myocardium)
    _over(out, np.where(endocardium > 0, endocardium - coarse_wall - r, -9), softness_mm, blood)
    height = w_mm / heart.length_mm
    if 0.22 < height < 0.80:
        size_mm = (3.2 + 0.085 * heart.wall_mm * 2) * np.sqrt(np.clip(1 - ((height - 0.5) / 0.3) ** 2, 0.05, 1))
        for angle in (2.05 + 0.25 * np.sin(p[0]), -2.2 + 0.25 * np.sin(p[1])):  # anterolateral and posteromedial
            centre_mm = max(float(endocardium_mm(heart, np.float64(angle), w)) - 1.25 * size_mm - 0.6, 0)
            cx, cy = centre_mm * np.cos(angle + septum), centre_mm * np.sin(angle + septum)
            _over(out, _ellipse(x, y, cx, cy, 1.25 * size_mm, size_mm, angle + septum), softness_mm, 1.1 * myocardium)
    return out


def _paint_great_vessels(
    out: Array, x: Array, y: Array, above_mm: float, septum: float, heart: Chambers, person: Body, tissue: Tissues, fine: Array, coarse: Array, soft: float
) -> Array:
    """Atria, aortic root and outflow tract above the mitral plane; the atria fill while the ventricles empty."""
    shrink = float(np.sqrt(np.clip(1 - (above_mm / ATRIA_MM) ** 2, 0, 1)))
    if shrink == 0:
        return out
    scale = float(epicardium_mm(heart, np.float64(np.pi), np.float64(0.99 * heart.length_mm))) / 34
    blood = tissue["blood"] * (0.97 + 0.035 * fine + 0.06 * coarse)

    def at(angle: float, distance_mm: float) -> tuple[float, float]:
        return distance_mm * scale * np.cos(septum + angle), distance_mm * scale * np.sin(septum + angle)

    left, right, outflow, root = at(-2.7, 9), at(-0.55, 46), at(0.95, 42), at(0.35, 17)
    filling = 1.25 - 0.25 * min(heart.radius_mm / 27, 1.3)
    parts = (  # centre, half axes in mm
        (right, 23 * filling * shrink * scale, 28 * filling * shrink * scale),
        (left, 26 * filling * shrink * scale, 21 * filling * shrink * scale),
        (outflow, 14.5 * scale, 17 * scale),
        (root, 14.5 * scale, 14.5 * scale),
    )
    for margin_mm, signal in ((person.pericardial_fat_mm + 2.5, tissue["fat"] * (0.85 + 0.1 * coarse)),):
        for (cx, cy), a, b in parts:
            _over(out, _ellipse(x, y, cx, cy, a, b, septum) + margin_mm, soft, signal)
    for (cx, cy), a, b in parts:
        inside = _ellipse(x, y, cx, cy, a, b, septum)
        _over(out, inside + 1.8, soft, 0.9 * tissue["myocardium"])
        _over(out, inside, soft, blood)
    return out


def heart_radius_mm(heart: Chambers) -> float:
    """A circle about the axis that holds the ventricles, their fat and the atria."""
    return float(heart.radius_mm * profile(np.array(EQUATOR_HEIGHT)) + 2 * heart.wall_mm + heart.rv_depth_mm + 45)


EQUATOR_HEIGHT = 0.74
