"""The geometry of a beating heart: where the left ventricle, its wall and the right ventricle are, at end-diastole and end-systole.

Everything is polar about the long axis of the left ventricle: a point is (theta, r, w) with theta measured from the middle of the septum,
r the distance to the axis in mm, and w the height above the endocardial apex in mm. The cavity is an ellipsoid truncated at the base,
the right ventricle a crescent that lies on the epicardium around theta = 0. Volumes are those a clinician measures: the sum over slices
of area times distance, so the radius of each chamber is solved on the slices that were acquired.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from raylora.data.phantom_patient import Patient

EQUATOR = 0.74  # height of the widest slice, as a share of the cavity's length
SYSTOLIC_SHORTENING = 0.24  # of the length, at an ejection fraction of 1
RV_APEX, RV_HALF_ANGLE = 0.12, 1.35  # share of the length; radians at the base
INFARCT_HALF_ANGLE, INFARCT_HEIGHT = 0.75, 0.45  # radians; share of the length
ANGLES = np.linspace(-np.pi, np.pi, 180, endpoint=False)  # for volumes
TURN = 720
DIRECTIONS = (np.arange(TURN) + 0.5) * (2 * np.pi / TURN) - np.pi  # for pictures

Array = np.ndarray


@dataclass(frozen=True, kw_only=True)
class Chambers:
    """One heart at one time. Radii and depths are at the equator and the base; the functions below give every other place."""

    radius_mm: float  # cavity
    length_mm: float  # cavity, apex to mitral plane
    wall_mm: float  # mean wall
    bulge_mm: float  # how much further out the infarcted segment stays
    thinning: float  # share of the wall lost there
    septal: float
    infarct_angle: float
    rv_depth_mm: float  # septum to free wall at the base
    ripple: Array  # (3, 4): amplitude, phase, twist (radians/mm) of the low harmonics that make no two hearts alike


def wrapped(angle: Array) -> Array:
    """The angle in [-pi, pi)."""
    return (angle + np.pi) % (2 * np.pi) - np.pi


def profile(height: Array) -> Array:
    """Radius of the truncated ellipsoid at a share of its length, relative to the equator; 0 outside."""
    inside = (height > 0) & (height <= 1)
    return np.where(inside, np.sqrt(np.clip(1 - ((height - EQUATOR) / EQUATOR) ** 2, 0, None)), 0.0)


def _ripple(heart: Chambers, theta: Array, w: Array) -> Array:
    amplitude, phase, twist = heart.ripple
    return 1 + sum(a * np.cos((k + 2) * theta + p + t * w) for k, (a, p, t) in enumerate(zip(amplitude, phase, twist, strict=True)))


def _infarct(heart: Chambers, theta: Array, w: Array) -> Array:
    across = wrapped(theta - heart.infarct_angle) / INFARCT_HALF_ANGLE
    along = (w / heart.length_mm - INFARCT_HEIGHT) / 0.55
    return np.exp(-(across**4) - along**4)


def endocardium_mm(heart: Chambers, theta: Array, w: Array) -> Array:
    """Radius of the cavity of the left ventricle; 0 above the base and below the apex."""
    return _endocardium_mm(heart, w, _infarct(heart, theta, w), _ripple(heart, theta, w))


def epicardium_mm(heart: Chambers, theta: Array, w: Array) -> Array:
    """Outer radius of the wall; it closes below the apex of the cavity."""
    return _epicardium_mm(heart, theta, w, _infarct(heart, theta, w), _ripple(heart, theta, w))


def _endocardium_mm(heart: Chambers, w: Array, infarct: Array, ripple: Array) -> Array:
    return (heart.radius_mm + heart.bulge_mm * infarct) * profile(w / heart.length_mm) * ripple


def _epicardium_mm(heart: Chambers, theta: Array, w: Array, infarct: Array, ripple: Array) -> Array:
    septum = np.exp(-((wrapped(theta) / 1.1) ** 4))
    wall = heart.wall_mm * (1 + heart.septal * (2 * septum - 0.7)) * (1 - heart.thinning * infarct)
    cap_mm = 0.7 * heart.wall_mm
    return (heart.radius_mm + heart.bulge_mm * infarct + wall) * profile((w + cap_mm) / (heart.length_mm + cap_mm)) * ripple


def rv_depth_mm(heart: Chambers, theta: Array, w: Array) -> Array:
    """Distance from the right surface of the septum to the inner surface of the free wall; 0 where there is no right ventricle."""
    height = w / heart.length_mm
    rise = np.clip((height - RV_APEX) / (1 - RV_APEX), 0, 1) * (height <= 1)
    across = wrapped(theta + 0.1) / (RV_HALF_ANGLE * (0.55 + 0.45 * rise))
    shape = np.clip(1 - across**2, 0, None) ** 0.6
    return heart.rv_depth_mm * rise**0.55 * (1.08 - 0.2 * rise**4) * shape * (1 - 0.22 * across)


def _measured_ml(
    inner: Callable[[Array, Array], Array], outer: Callable[[Array, Array], Array], slices_mm: Array, spacing_mm: float
) -> float:
    """Volume between two polar surfaces as slices measure it."""
    theta, w = ANGLES[None, :], slices_mm[:, None]
    area_mm2 = 0.5 * (outer(theta, w) ** 2 - inner(theta, w) ** 2).mean(1) * 2 * np.pi
    return float(area_mm2.sum() * spacing_mm / 1000)


def lv_ml(heart: Chambers, slices_mm: Array, spacing_mm: float) -> float:
    return _measured_ml(lambda t, w: 0 * t, lambda t, w: endocardium_mm(heart, t, w), slices_mm, spacing_mm)


def myo_ml(heart: Chambers, slices_mm: Array, spacing_mm: float) -> float:
    return _measured_ml(
        lambda t, w: endocardium_mm(heart, t, w), lambda t, w: epicardium_mm(heart, t, w), _below(heart, slices_mm), spacing_mm
    )


def rv_ml(heart: Chambers, slices_mm: Array, spacing_mm: float) -> float:
    return _measured_ml(
        lambda t, w: epicardium_mm(heart, t, w),
        lambda t, w: epicardium_mm(heart, t, w) + rv_depth_mm(heart, t, w),
        _below(heart, slices_mm),
        spacing_mm,
    )


def _below(heart: Chambers, slices_mm: Array) -> Array:
    return slices_mm[slices_mm <= heart.length_mm]


def solve(volume_of: Callable[[float], float], volume_ml: float, low: float, high: float) -> float:
    """The argument at which an increasing volume is reached (bisection)."""
    for _ in range(28):
        middle = (low + high) / 2
        low, high = (middle, high) if volume_of(middle) < volume_ml else (low, middle)
    return (low + high) / 2


def length_mm(patient: Patient) -> float:
    """End-diastolic length of the cavity: from the volume of the truncated ellipsoid and the ratio of radius to length."""
    shape = 1 - ((1 - EQUATOR) ** 3 + EQUATOR**3) / (3 * EQUATOR**2)
    return float((patient.lvedv_ml * 1000 / (np.pi * patient.slenderness**2 * shape)) ** (1 / 3))


def beat(patient: Patient, slices_mm: Array, spacing_mm: float, rng: np.random.Generator) -> tuple[Chambers, Chambers]:
    """The heart at ED and at ES on these slices.

    The volumes are the patient's, the wall's volume is kept, and the mitral plane is nearer to the apex at ES.
    """
    ripple = np.stack([rng.normal(0, 1, 4) * (0.022, 0.014, 0.008, 0.006), rng.uniform(-np.pi, np.pi, 4), rng.normal(0, 0.01, 4)])
    septum_share = 1 + 1.3 * patient.septal  # the stated wall is the thickest segment, the septum's
    diastole = Chambers(
        radius_mm=0.0,
        length_mm=length_mm(patient),
        wall_mm=patient.wall_mm / septum_share,
        bulge_mm=0.0,
        thinning=patient.thinning,
        septal=patient.septal,
        infarct_angle=patient.infarct_angle,
        rv_depth_mm=0.0,
        ripple=ripple,
    )
    diastole = _filled(diastole, patient.lvedv_ml, patient.rvedv_ml, slices_mm, spacing_mm)
    systole = replace(diastole, length_mm=diastole.length_mm * (1 - SYSTOLIC_SHORTENING * patient.lv_ef_percent / 100))
    stays_mm = solve(  # the bulge depends on the radius, which depends on the bulge: solved together
        lambda radius: lv_ml(_contracted(systole, diastole, radius, patient.akinesia), slices_mm, spacing_mm), patient.lvesv_ml, 0.0, 80.0
    )
    systole = _contracted(systole, diastole, stays_mm, patient.akinesia)
    wall_area = (diastole.radius_mm + diastole.wall_mm) ** 2 - diastole.radius_mm**2
    wall_mm = np.sqrt(systole.radius_mm**2 + wall_area * diastole.length_mm / systole.length_mm) - systole.radius_mm
    # An akinetic segment does not thicken: its wall at ES is its wall at ED.
    thinning = 1 - (1 - diastole.thinning) * diastole.wall_mm / wall_mm if patient.akinesia else 0.0
    systole = replace(systole, wall_mm=float(wall_mm), thinning=float(thinning))
    return diastole, _filled(systole, None, patient.rvesv_ml, slices_mm, spacing_mm)


def _contracted(systole: Chambers, diastole: Chambers, radius_mm: float, akinesia: float) -> Chambers:
    return replace(systole, radius_mm=radius_mm, bulge_mm=akinesia * max(diastole.radius_mm - radius_mm, 0.0))


def _filled(heart: Chambers, lv: float | None, rv: float, slices_mm: Array, spacing_mm: float) -> Chambers:
    if lv is not None:
        heart = replace(heart, radius_mm=solve(lambda r: lv_ml(replace(heart, radius_mm=r), slices_mm, spacing_mm), lv, 0.0, 80.0))
    return replace(heart, rv_depth_mm=solve(lambda d: rv_ml(replace(heart, rv_depth_mm=d), slices_mm, spacing_mm), rv, 0.0, 120.0))


@dataclass(frozen=True, kw_only=True)
class Surfaces:
    """The surfaces of one slice, mm, at the TURN directions of one turn: looked up by pixels instead of computed for each."""

    endocardium: Array
    epicardium: Array
    rv_depth: Array


def surfaces(heart: Chambers, w_mm: float) -> Surfaces:
    """All zero above the mitral plane and below the apex of the wall."""
    w = np.float64(w_mm)
    if w_mm > heart.length_mm:
        return Surfaces(endocardium=np.zeros(TURN), epicardium=np.zeros(TURN), rv_depth=np.zeros(TURN))
    infarct, ripple = _infarct(heart, DIRECTIONS, w), _ripple(heart, DIRECTIONS, w)
    return Surfaces(
        endocardium=_endocardium_mm(heart, w, infarct, ripple),
        epicardium=_epicardium_mm(heart, DIRECTIONS, w, infarct, ripple),
        rv_depth=rv_depth_mm(heart, DIRECTIONS, w),
    )


def direction_index(theta: Array) -> Array:
    """Which of the TURN directions an angle between -5 pi and 5 pi is."""
    return ((theta + np.float32(5 * np.pi)) * np.float32(TURN / (2 * np.pi))).astype(np.int32) % TURN


def label_slice(slice_: Surfaces, direction: Array, r_mm: Array) -> Array:
    """RV 1, MYO 2, LV 3 on the points of one slice; the papillary muscles belong to the cavity.

    Args: direction (indices), r_mm: arrays of one shape (x, y). Returns uint8 of that shape.
    """
    epicardium = slice_.epicardium[direction]
    out = np.zeros(r_mm.shape, np.uint8)
    out[(r_mm >= epicardium) & (r_mm < (slice_.epicardium + slice_.rv_depth)[direction])] = 1
    out[r_mm < epicardium] = 2
    out[r_mm < slice_.endocardium[direction]] = 3
    return out
