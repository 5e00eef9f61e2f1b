"""The thorax around a heart: skin, fat, ribs, lungs, liver, stomach, spleen, aorta; mm from the axis of the left ventricle."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from raylora.data.phantom_anatomy import Chambers, wrapped
from raylora.data.phantom_paint import Array, Palette, Plane, ellipse_mm

CHEST_WALL_MM = 16.0  # muscle and ribs
RV_WALL_MM = 2.5


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
    phases: tuple[float, ...]  # of everything that is irregular


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
        phases=tuple(rng.uniform(0, 2 * np.pi, 12).tolist()),
    )


def paint_chest_wall(at: Plane, person: Body, paint: Palette) -> tuple[Array, Array]:
    """Skin, fat, muscle, ribs and lung: what does not move with the breath.

    Returns the canvas (n, m), and the distance inside the chest's inner wall (n, m), mm.
    """
    x, y, fine, coarse, p, tissue = at.x, at.y, at.fine, at.coarse, person.phases, paint.signal
    (cx, cy), (a, b) = person.centre_mm, person.half_axes_mm
    u, v = (x - cx) / a, (y - cy) / b
    angle = np.arctan2(v, u)
    depth = (1 - (np.abs(u) ** 2.5 + np.abs(v) ** 2.5) ** 0.4 + 0.015 * np.sin(3 * angle + p[0])) * a  # below the skin
    fat_mm = person.fat_mm * (1 + 0.3 * np.sin(2 * angle + p[1]) + 0.2 * np.sin(5 * angle + p[2])) + 9 * np.clip(-np.sin(angle), 0, 1) ** 3
    below = depth - fat_mm
    canvas = np.zeros(x.shape, np.float32)
    paint.over(canvas, depth, tissue["fat"] * (1 + 0.05 * coarse))
    paint.over(canvas, below, tissue["muscle"] * (1 + 0.12 * fine))
    paint.over(canvas, 1.2 - np.abs(below - 6 - 2 * coarse), 0.8 * tissue["fat"])  # between the muscles
    ribs = 4.5 - np.hypot(below - 10, wrapped(9 * angle + p[3]) * np.float32(a / 9))
    paint.over(canvas, ribs + 1.5, tissue["bone"])
    paint.over(canvas, ribs - 0.5, 0.55 * tissue["fat"])
    inner = below - CHEST_WALL_MM - 14 * np.clip(-v - 0.25, 0, 1)  # the shoulder
    paint.over(canvas, inner, 0.6 * tissue["fat"])
    paint.over(canvas, inner - 1.5, tissue["lung"] * (1 + 0.3 * coarse))
    return canvas, inner


def paint_organs(canvas: Array, inner: Array, at: Plane, height: float, person: Body, paint: Palette) -> Array:
    """A copy of the canvas with everything inside the chest but the heart, at a height given as a share of the ventricle's length."""
    out = canvas.copy()
    x, y, fine, coarse, p, tissue = at.x, at.y, at.fine, at.coarse, person.phases, paint.signal
    paint.over(out, np.minimum((fine - 1.8) * 2.0 - 0.02 * np.abs(np.hypot(x, y) - 75), inner - 12), 0.6 * tissue["blood"])  # lung vessels
    pad = np.minimum(ellipse_mm(at, (-0.7 * person.front_mm, 16.0), (0.5 * person.front_mm, 42.0), 0.25) + 4 * coarse, inner)
    paint.over(out, pad, tissue["fat"] * (0.75 + 0.1 * coarse))
    # Abdomen under the diaphragm's dome; nearer to the apex the slice cuts more of it.
    dome = person.diaphragm_mm + 16 * float(np.clip(height - 0.35, -0.5, 1.2)) + 0.0022 * (x + 5) ** 2 + 3 * np.sin(x / 28 + p[4])
    abdomen = np.minimum(y - dome, inner)
    paint.over(out, abdomen, tissue["fat"] * (0.8 + 0.1 * coarse))
    paint.over(out, np.minimum((coarse + 0.35) * 9, abdomen - 16), tissue["muscle"] * (1.3 + 0.25 * fine))  # bowel, kidney, pancreas
    middle = person.liver_edge_mm
    edge = middle + 22 * np.sin(y / 45 + p[5]) - 12 * (1 - height)
    liver = np.minimum(np.minimum(abdomen - 2, edge - x), 105 + 40 * height + 0.5 * x - (y - dome))
    paint.over(out, liver + 1.5, 0.9 * tissue["fat"])
    paint.over(out, liver, tissue["liver"] * (1 + 0.05 * coarse + 0.04 * fine))
    paint.over(out, np.minimum((fine - 1.95) * 3, liver - 5), 0.85 * tissue["blood"])
    stomach = np.minimum(ellipse_mm(at, (middle + 34, person.diaphragm_mm + 26), (30.0, 20.0), 0.4) + 2 * coarse, abdomen - 1.5)
    paint.over(out, stomach, 1.3 * tissue["muscle"])
    paint.over(out, stomach - 5, tissue["muscle"] * (1.0 + 0.9 * np.clip(coarse, -0.9, 2)))
    spleen = np.minimum(
        ellipse_mm(at, (middle + 72, person.diaphragm_mm + 48 + 12 * height), (20.0, 38.0), -0.45) + 1.5 * coarse, abdomen - 1.5
    )
    paint.over(out, spleen, tissue["spleen"] * (1 + 0.06 * fine))
    ax, ay = person.aorta_mm[0], person.aorta_mm[1] + 12 * (height - 0.5)
    aorta = ellipse_mm(at, (ax, ay), (10.5, 10.5))
    for margin_mm, signal in ((3.0, 0.7 * tissue["fat"]), (1.2, tissue["myocardium"]), (0.0, 0.95 * tissue["blood"])):
        paint.over(out, aorta + margin_mm, signal)
    return out
