"""What surrounds and fills a heart in one short-axis slice: tissues painted over each other, with soft borders (partial volume).

A canvas holds signal in units of the blood's (blood pool = 1). Positions are in mm from the axis of the left ventricle: x towards the
patient's left and back, y towards the feet (down in the picture); the septum lies at negative x.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter

from raylora.data.phantom_anatomy import DIRECTIONS, Chambers, direction_index, epicardium_mm, surfaces, wrapped

Array = np.ndarray
Tissues = Mapping[str, float]  # blood, myocardium, fat, muscle, liver, spleen, lung, bone -> signal
RV_WALL_MM = 2.5
ATRIA_MM = 45.0  # how far the atria reach above the mitral plane
CHEST_WALL_MM = 16.0  # muscle and ribs
PAPILLARIES = (2.05, -2.2)  # anterolateral, posteromedial: radians from the septum


@dataclass(frozen=True, kw_only=True)
class Body:
    """One thorax, built around its heart. Distances from the axis of the left ventricle at mid-heart, mm."""

    fat_mm: float  # under the skin
    centre_mm: tuple[float, float]
    half_axes_mm: tuple[float, float]  # front to back, along the body
    front_mm: float  # how far the heart reaches to the breastbone
    aorta_mm: tuple[float, float]
    diaphragm_mm: float
    liver_edge_mm: float
    pericardial_fat_mm: float
    phases: Array  # (12,) of everything that is irregular


@dataclass(frozen=True, kw_only=True)
class Grain:
    """Smooth noise on the pixels of a slice, unit variance, at two scales: tissue that is not uniform."""

    fine: Array
    coarse: Array

    def at(self, box: tuple[slice, slice]) -> Grain:
        return Grain(fine=self.fine[box], coarse=self.coarse[box])

    def moved(self, step: int) -> Grain:
        """Another slice's."""
        return Grain(fine=np.roll(self.fine, (37 * step, 61 * step), (0, 1)), coarse=np.roll(self.coarse, (3 * step, 5 * step), (0, 1)))


def body(rng: np.random.Generator, bmi: float, diastole: Chambers) -> Body:
    """A thorax with room for this heart."""
    lateral_mm = diastole.radius_mm + diastole.wall_mm
    front_mm = lateral_mm + 0.85 * diastole.rv_depth_mm + RV_WALL_MM
    fat_mm = float(np.clip(5 + 1.0 * (bmi - 19) + rng.normal(0, 2), 4, 28))
    aorta_mm = (float(0.75 * lateral_mm + 12 + rng.normal(0, 4)), float(lateral_mm + 8 + rng.normal(0, 4)))
    front_skin_mm = front_mm + 5 + CHEST_WALL_MM + 1.2 * fat_mm
    back_skin_mm = aorta_mm[0] + 42 + CHEST_WALL_MM + fat_mm
    return Body(
        fat_mm=fat_mm,
        centre_mm=((back_skin_mm - front_skin_mm) / 2, float(20 + rng.normal(0, 8))),
        half_axes_mm=((back_skin_mm + front_skin_mm) / 2, float(185 + rng.normal(0, 8))),
        front_mm=front_mm,
        aorta_mm=aorta_mm,
        diaphragm_mm=float(lateral_mm + 5 + rng.normal(0, 3)),
        liver_edge_mm=float(rng.normal(12, 10)),
        pericardial_fat_mm=float(np.clip(1.0 + 0.12 * (bmi - 19) + rng.normal(0, 1), 0.6, 6)),
        phases=rng.uniform(0, 2 * np.pi, 12),
    )


def grain(rng: np.random.Generator, size: int, pixel_mm: float) -> Grain:
    def smooth(sigma_mm: float) -> Array:
        field = gaussian_filter(rng.standard_normal((size, size), dtype=np.float32), sigma_mm / pixel_mm, mode="wrap", truncate=3)
        return field / field.std()

    return Grain(fine=smooth(1.8), coarse=smooth(9.0))


def _over(canvas: Array, inside_mm: Array, softness_mm: float, signal: float | Array) -> None:
    """Paints where ``inside_mm`` (signed distance, positive inside) says so, in place, with a border as wide as ``softness_mm``."""
    cover = np.clip(0.5 + inside_mm / softness_mm, 0, 1)
    canvas += cover * (signal - canvas)


def _ellipse(x: Array, y: Array, centre: tuple[float, float], half_axes: tuple[float, float], turn: float = 0.0) -> Array:
    """Signed distance, positive inside: exact for circles, close for others."""
    dx, dy = x - np.float32(centre[0]), y - np.float32(centre[1])
    u, v = dx * np.float32(np.cos(turn)) + dy * np.float32(np.sin(turn)), dy * np.float32(np.cos(turn)) - dx * np.float32(np.sin(turn))
    return (1 - np.hypot(u / half_axes[0], v / half_axes[1])) * float(np.sqrt(half_axes[0] * half_axes[1]))


def paint_chest_wall(x: Array, y: Array, person: Body, tissue: Tissues, texture: Grain, softness_mm: float) -> tuple[Array, Array]:
    """Skin, fat, muscle, ribs and lung: what does not move with the breath.

    Args: x, y (n, m) mm. Returns the canvas (n, m), and the distance inside the chest's inner wall (n, m), mm.
    """
    fine, coarse, p = texture.fine, texture.coarse, person.phases
    (cx, cy), (a, b) = person.centre_mm, person.half_axes_mm
    u, v = (x - cx) / a, (y - cy) / b
    angle = np.arctan2(v, u)
    depth = (1 - (np.abs(u) ** 2.5 + np.abs(v) ** 2.5) ** 0.4 + 0.015 * np.sin(3 * angle + p[0])) * a  # below the skin
    fat_mm = person.fat_mm * (1 + 0.3 * np.sin(2 * angle + p[1]) + 0.2 * np.sin(5 * angle + p[2])) + 9 * np.clip(-np.sin(angle), 0, 1) ** 3
    below = depth - fat_mm
    canvas = np.zeros(x.shape, np.float32)
    _over(canvas, depth, softness_mm, tissue["fat"] * (1 + 0.05 * coarse))
    _over(canvas, below, softness_mm, tissue["muscle"] * (1 + 0.12 * fine))
    _over(canvas, 1.2 - np.abs(below - 6 - 2 * coarse), softness_mm, 0.8 * tissue["fat"])  # between the muscles
    ribs = 4.5 - np.hypot(below - 10, wrapped(9 * angle + p[3]) * np.float32(a / 9))
    _over(canvas, ribs + 1.5, softness_mm, tissue["bone"])
    _over(canvas, ribs - 0.5, softness_mm, 0.55 * tissue["fat"])
    inner = below - CHEST_WALL_MM - 14 * np.clip(-v - 0.25, 0, 1)  # the shoulder
    _over(canvas, inner, softness_mm, 0.6 * tissue["fat"])
    _over(canvas, inner - 1.5, softness_mm, tissue["lung"] * (1 + 0.3 * coarse))
    return canvas, inner


def paint_organs(
    canvas: Array, inner: Array, x: Array, y: Array, height: float, person: Body, tissue: Tissues, texture: Grain, softness_mm: float
) -> Array:
    """A copy of the canvas with everything inside the chest but the heart, at a height given as a share of the ventricle's length."""
    out = canvas.copy()
    fine, coarse, p = texture.fine, texture.coarse, person.phases
    _over(
        out, np.minimum((fine - 1.8) * 2.0 - 0.02 * np.abs(np.hypot(x, y) - 75), inner - 12), softness_mm, 0.6 * tissue["blood"]
    )  # lung vessels
    pad = np.minimum(_ellipse(x, y, (-0.7 * person.front_mm, 16.0), (0.5 * person.front_mm, 42.0), 0.25) + 4 * coarse, inner)
    _over(out, pad, softness_mm, tissue["fat"] * (0.75 + 0.1 * coarse))
    # Abdomen under the diaphragm's dome; nearer to the apex the slice cuts more of it.
    dome = person.diaphragm_mm + 16 * float(np.clip(height - 0.35, -0.5, 1.2)) + 0.0022 * (x + 5) ** 2 + 3 * np.sin(x / 28 + p[4])
    abdomen = np.minimum(y - dome, inner)
    _over(out, abdomen, softness_mm, tissue["fat"] * (0.8 + 0.1 * coarse))
    _over(
        out, np.minimum((coarse + 0.35) * 9, abdomen - 16), softness_mm, tissue["muscle"] * (1.3 + 0.25 * fine)
    )  # bowel, kidney, pancreas
    middle = person.liver_edge_mm
    edge = middle + 22 * np.sin(y / 45 + p[5]) - 12 * (1 - height)
    liver = np.minimum(np.minimum(abdomen - 2, edge - x), 105 + 40 * height + 0.5 * x - (y - dome))
    _over(out, liver + 1.5, softness_mm, 0.9 * tissue["fat"])
    _over(out, liver, softness_mm, tissue["liver"] * (1 + 0.05 * coarse + 0.04 * fine))
    _over(out, np.minimum((fine - 1.95) * 3, liver - 5), softness_mm, 0.85 * tissue["blood"])
    stomach = np.minimum(_ellipse(x, y, (middle + 34, person.diaphragm_mm + 26), (30.0, 20.0), 0.4) + 2 * coarse, abdomen - 1.5)
    _over(out, stomach, softness_mm, 1.3 * tissue["muscle"])
    _over(out, stomach - 5, softness_mm, tissue["muscle"] * (1.0 + 0.9 * np.clip(coarse, -0.9, 2)))
    spleen = np.minimum(
        _ellipse(x, y, (middle + 72, person.diaphragm_mm + 48 + 12 * height), (20.0, 38.0), -0.45) + 1.5 * coarse, abdomen - 1.5
    )
    _over(out, spleen, softness_mm, tissue["spleen"] * (1 + 0.06 * fine))
    ax, ay = person.aorta_mm[0], person.aorta_mm[1] + 12 * (height - 0.5)
    aorta = _ellipse(x, y, (ax, ay), (10.5, 10.5))
    for margin_mm, signal in ((3.0, 0.7 * tissue["fat"]), (1.2, tissue["myocardium"]), (0.0, 0.95 * tissue["blood"])):
        _over(out, aorta + margin_mm, softness_mm, signal)
    return out


def paint_heart(
    canvas: Array,
    x: Array,
    y: Array,
    w_mm: float,
    septum: float,
    heart: Chambers,
    person: Body,
    tissue: Tissues,
    texture: Grain,
    softness_mm: float,
) -> Array:
    """A copy of ``canvas`` with the heart at height ``w_mm``. Args: x, y (n, m) mm from the axis; septum: its direction, radians."""
    out = canvas.copy()
    height = w_mm / heart.length_mm
    if height > 1:
        return _paint_great_vessels(out, x, y, w_mm - heart.length_mm, septum, heart, person, tissue, texture, softness_mm)
    r, direction = np.hypot(x, y), direction_index(wrapped(np.arctan2(y, x) - np.float32(septum)))
    slice_, fine, coarse, p, theta = surfaces(heart, w_mm), texture.fine, texture.coarse, person.phases, DIRECTIONS

    def within(radius_mm: Array) -> Array:  # (TURN,) -> signed distance (n, m), positive inside; nothing where the radius is 0
        return np.where(radius_mm > 0, radius_mm, -9.0).astype(np.float32)[direction] - r

    rv_present = slice_.rv_depth > 0
    outer = slice_.epicardium + slice_.rv_depth + RV_WALL_MM * np.clip(slice_.rv_depth / 6, 0, 1)
    grooves = np.exp(-((np.abs(theta) - 1.25) ** 2) / 0.1)
    fat_mm = person.pericardial_fat_mm * (1 + 0.6 * np.cos(theta + p[8]) + 0.5 * np.cos(3 * theta + p[6])) + 3.0 * grooves * height
    sack = np.where(outer > 0, outer + np.clip(fat_mm, 0.3, None), 0)
    _over(out, within(sack) + 1.0, softness_mm, tissue["myocardium"])  # pericardium
    _over(out, within(sack), softness_mm, tissue["fat"] * (0.85 + 0.08 * coarse))
    myocardium = tissue["myocardium"] * (1 + 0.08 * fine + 0.05 * coarse)
    blood = tissue["blood"] * (1 + 0.035 * fine + 0.06 * coarse)
    _over(out, within(outer), softness_mm, myocardium)
    # Trabeculae are in the picture only: labels follow the smooth wall behind them.
    ridges = np.clip(np.cos(9 * theta + p[9] + 0.25 * w_mm) + np.cos(14 * theta + p[10] - 0.2 * w_mm), 0, 2) * (
        0.5 + 1.0 * max(1 - height, 0)
    )
    rv_blood = within(np.where(rv_present, slice_.epicardium + slice_.rv_depth - 1.4 * ridges * np.clip(slice_.rv_depth / 8, 0, 1), 0))
    strand = np.minimum(0.9 - 6 * np.abs(fine + 0.3), within(slice_.epicardium + slice_.rv_depth) + 2)
    strand = np.minimum(strand, 0.4 * slice_.rv_depth.astype(np.float32)[direction] - within(slice_.epicardium + slice_.rv_depth))
    _over(out, rv_blood, softness_mm, 0.95 * blood)
    _over(out, np.minimum(strand, rv_blood), 3 * softness_mm, 1.4 * myocardium)
    _over(out, within(slice_.epicardium), softness_mm, myocardium)
    _over(out, within(np.clip(slice_.endocardium - ridges, 0, None)), softness_mm, blood)
    if 0.25 < height < 0.78:
        size_mm = (2.6 + 0.17 * heart.wall_mm) * float(np.sqrt(np.clip(1 - ((height - 0.5) / 0.28) ** 2, 0.05, 1)))
        for angle, phase in zip(PAPILLARIES, p, strict=False):
            turn = angle + 0.3 * float(np.sin(phase))
            distance_mm = max(float(slice_.endocardium[direction_index(np.float64(turn))]) - 1.3 * size_mm - 0.5, 0)
            centre = (distance_mm * float(np.cos(turn + septum)), distance_mm * float(np.sin(turn + septum)))
            _over(out, _ellipse(x, y, centre, (1.3 * size_mm, size_mm), turn + septum), softness_mm, 1.1 * myocardium)
    return out


def _paint_great_vessels(
    out: Array,
    x: Array,
    y: Array,
    above_mm: float,
    septum: float,
    heart: Chambers,
    person: Body,
    tissue: Tissues,
    texture: Grain,
    softness_mm: float,
) -> Array:
    """Atria, aortic root and outflow tract above the mitral plane; the atria fill while the ventricles empty."""
    shrink = float(np.sqrt(np.clip(1 - (above_mm / ATRIA_MM) ** 2, 0, 1)))
    if shrink == 0:
        return out
    blood = tissue["blood"] * (0.97 + 0.035 * texture.fine + 0.06 * texture.coarse)
    scale = float(epicardium_mm(heart, np.float64(np.pi), np.float64(0.98 * heart.length_mm))) / 34
    filling = shrink * (1.2 - 0.2 * min(heart.radius_mm / 27, 1.3))

    def at(angle: float, distance_mm: float) -> tuple[float, float]:
        return distance_mm * scale * float(np.cos(septum + angle)), distance_mm * scale * float(np.sin(septum + angle))

    parts = (  # right and left atrium, outflow tract, aortic root
        (at(-0.5, 42), (25 * filling * scale, 29 * filling * scale)),
        (at(-2.4, 11), (31 * filling * scale, 24 * filling * scale)),
        (at(0.9, 37), (17.0 * scale, 21.0 * scale)),
        (at(0.3, 16), (17.0 * scale, 17.0 * scale)),
    )
    hull = _ellipse(x, y, at(0.15, 24), (44 * shrink * scale, 52 * shrink * scale), septum)
    _over(out, hull + 2 * texture.coarse, softness_mm, tissue["fat"] * (0.75 + 0.08 * texture.coarse))
    shapes = [_ellipse(x, y, centre, half_axes, septum) for centre, half_axes in parts]
    for shape in shapes:
        _over(out, shape + 3 + person.pericardial_fat_mm, softness_mm, tissue["fat"] * (0.8 + 0.08 * texture.coarse))
    for shape in shapes:
        _over(out, shape + 1.6, softness_mm, 0.9 * tissue["myocardium"])
        _over(out, shape, softness_mm, blood)
    return out


def heart_reach_mm(heart: Chambers) -> float:
    """A circle about the axis that holds the ventricles, their fat and the atria."""
    ventricles = heart.radius_mm + 1.5 * heart.wall_mm + 1.1 * heart.rv_depth_mm + 16
    return max(ventricles, 82 * (heart.radius_mm + heart.wall_mm) / 34)
